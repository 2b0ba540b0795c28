"""A message to the gateways that hold its user's connections.

`dispatch`, the page to read first, looks users up (`whereabouts`), queues each message for the
nodes of its user (`gateways`), which post batches (`forward`), and settles messages by the answers.
This wing may import reading; it does not know what becomes of a settled message.
"""
