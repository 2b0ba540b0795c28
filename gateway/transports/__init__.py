"""The transports: each brings its own way in and its own bytes.

A transport's file has `connect(head, entry)`, which answers a request on the transport's path, and
a Connection that frames messages and reads what the client sends. It may import entry,
connections, wires and http, and no other transport.
"""
