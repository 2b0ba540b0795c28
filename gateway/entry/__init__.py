"""Who may connect, and how an admitted request's socket is held.

`entry` checks a request (Origin, body, load, credential) before anything is allocated for it, then
detaches its socket and has the node hold it; `auth`, `jwks` and `origin` are the checks with rules
of their own. This wing knows no transport and no path: transports bring their bytes and call it.
It may import connections, wires and http.
"""
