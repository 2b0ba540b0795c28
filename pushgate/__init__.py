"""The command line and the embedded stack; the only package that sees all three parts."""
