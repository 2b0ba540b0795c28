"""HTTP listeners: from an accepted socket to a request, and the way of a socket out of HTTP.

`listener` binds a port and accepts sockets. `http` is uvicorn's HTTP/1.1 protocol with bounds on
size and time. `door` counts sockets and closes sockets that are too many or too slow. `head` reads
the head of a request, and `responses` writes the heads of responses. `detach` defines how an
application takes a request's socket out of HTTP, and `direct` which requests are answered without
ASGI. This wing (a package of the gateway) is a leaf: of the gateway it imports `errors` alone.
Other wings may import `head`, `responses`, `detach` and `direct`; the server may import `door` and
`listener` too.
"""
