"""Which clients may connect, and how the socket of an admitted request comes to be held.

`entry` checks a request (Origin, body, load, credential) before anything is allocated for the
request, then detaches the socket and has the node hold the connection. Checks with rules of their
own have files of their own: `auth` for tokens, `jwks` for the keys of tokens, `claims` for the
claims of tokens, `origin` for the Origin field. This wing (a package of the gateway) knows no
transport and no path: transports call `entry`, and bring the bytes of the answer. The wing may
import connections, wires and http.
"""
