"""The transports: WebSocket, SSE and long-poll, all with a way in and bytes of their own.

The file of a transport has `connect(head, entry)`, which answers a request on the transport's path,
and a subclass of `Connection`, which frames messages and reads the client's bytes. A transport may
import entry, connections, wires and http, and no second transport. `inbound` is a part of the
WebSocket transport.
"""
