"""What a node holds: connections, from the moment they are counted until they are forgotten.

`connection` has the states and every transition; `node` tells hub, registrar and clock together;
`hub` delivers, `repeats` recognises messages that come again, `registrar` keeps the registry in
step, `sweep` is the one clock, `drain` paces a node's end, `admission` bounds what a node takes.
`identity`, `delivery` and `closes` are values. This wing may import wires and the registry's
protocol; it knows no transport and no HTTP.
"""
