"""Load and micro benchmarks; see README.md. They reach the parts under test over TCP alone."""
