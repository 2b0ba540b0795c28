"""HTTP listeners: from an accepted socket to a request, and the way of a socket out of HTTP.

`listener` binds a port and accepts sockets. `http` is uvicorn's HTTP/1.1 protocol with bounds on
size and time. `door` counts sockets and closes sockets that are too many or too slow. `head` reads
the head of a request, `responses` writes the heads of responses, and `detach` defines how an
application takes a request's socket out of HTTP. This wing (a package of the gateway) is a leaf:
of the gateway it imports `errors` alone. Other wings may import `head`, `responses` and `detach`;
the server may import `door` and `listener` as well.
"""
