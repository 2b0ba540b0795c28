"""Sockets to requests: how a listener accepts, what it bounds, and how a socket leaves HTTP.

`listener` binds and accepts, `http` is uvicorn's protocol with bounds, `door` counts and ends
sockets; `head` and `responses` read and spell HTTP heads, `detach` is what a request's application
is offered. This wing is a leaf: it imports no other part of the gateway. Other wings may import
`head`, `responses` and `detach`, the server also `door` and `listener`.
"""
