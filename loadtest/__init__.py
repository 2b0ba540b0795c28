"""Load and micro benchmarks; see README.md. They speak to the parts only over the wire."""
