"""A gateway node: holds clients' connections and delivers messages to the clients.

A subpackage imports only subpackages to its right: transports → entry → connections → wires; http
is a leaf beside wires. `server` builds a node from `settings`. `app` is the public port, `internal`
the internal port, and `links` the connections that processors hold to it. `push` takes a batch of
messages to the connections.
"""
