"""The connections of one node, from the moment a connection is counted until it is forgotten.

`connection` has the states and every transition. `node` tells hub, registrar and clock
together. `hub` delivers messages. `repeats` recognises messages that come again. `registrar` keeps
the registry in step with the hub. `sweep` is the one clock of all connections. `drain` paces a
node's end. `admission` bounds how much a node takes. `identity`, `delivery` and `closes` are
values. This wing may import wires and the registry's protocol; it knows no transport and no HTTP.
"""
