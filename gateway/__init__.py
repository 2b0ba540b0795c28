"""A gateway node: holds clients' connections and delivers messages to them.

Wings, each importing only wings to its right: transports → entry → connections → wires; http is a
leaf beside wires. `server` builds a node from `settings`; `app` and `internal` are its two ports,
`push` is what a batch of messages goes through.
"""
