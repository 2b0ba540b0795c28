"""The command line and the embedded servers; the only package that imports the other three."""
