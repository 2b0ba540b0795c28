"""From a message to the gateways that hold its user's connections.

`dispatch`, the page to read first, looks users up (`whereabouts`), queues every message for the
nodes of the user (`gateways`), where batches are sent (`forward`) on held connections (`link`), and
settles messages by the answers. This wing may import reading. Settled messages leave by a callback:
outcomes are unknown here.
"""
