"""A client comes back with a cursor: what it has missed is asked for, and sent first.

`questions` puts gates in front of connections that resume (connections/gate.py), asks every live
processor, and writes the answers. `links` are the connections of processors for questions and
stamps. Imports connections; transports and the entry import it.
"""
