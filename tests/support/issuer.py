"""An issuer of tokens: its signing keys, and a real HTTP server with their public halves.

The server has threads of its own, so that it answers while a fixture waits for a process.
"""

import json
import socketserver
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from pushgate.embedded import LOOPBACK

_HEAD_BYTES: Final = 65_536
_HOLD_SECONDS: Final = 30.0


@dataclass(frozen=True)
class SigningKey:
    """A private key with the name under which its public half is published."""

    algorithm: str
    kid: str | None
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

    @classmethod
    def rsa(cls, kid: str | None, *, bits: int = 2_048) -> Self:
        """Make a key for RS256."""
        return cls("RS256", kid, rsa.generate_private_key(public_exponent=65_537, key_size=bits))

    @classmethod
    def ec(cls, kid: str | None, curve: ec.EllipticCurve | None = None) -> Self:
        """Make a key for ES256, or one on another curve."""
        return cls("ES256", kid, ec.generate_private_key(curve or ec.SECP256R1()))

    def jwk(self, **members: object) -> dict[str, Any]:
        """Give its public half (RFC 7517 §4) with other or more `members`."""
        if isinstance(self.private, rsa.RSAPrivateKey):
            public = RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        else:
            public = ECAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        named = {} if self.kid is None else {"kid": self.kid}
        return {**public, **named, **members}

    def sign(self, claims: dict[str, Any], header: Mapping[str, Any] | None = None) -> str:
        """Give a token of `claims` that names this key; `header` has other or more members."""
        named = {} if self.kid is None else {"kid": self.kid}
        return jwt.encode(claims, self.private, self.algorithm, headers={**named, **(header or {})})


def key_set(*keys: object) -> bytes:
    """Spell a JWK Set of signing keys, and of whatever else a set may hold."""
    members = [key.jwk() if isinstance(key, SigningKey) else key for key in keys]
    return json.dumps({"keys": members}).encode()


def response(
    body: bytes, status: str = "200 OK", *, headers: str = "", length: int | None = None
) -> bytes:
    """Spell a response; `length` is another one than the body's."""
    size = len(body) if length is None else length
    head = f"HTTP/1.1 {status}\r\ncontent-length: {size}\r\n{headers}\r\n"
    return head.encode() + body


class KeyServer:
    """A server on a port of its own that gives each request `answer` and closes.

    While `gate` is cleared, only the first `before_gate` bytes go out; the others with a pause of
    `drip_seconds` behind each, if that is not 0. All of these may change any time.
    """

    def __init__(self, *keys: object) -> None:
        self.answer = b""
        self.before_gate = 0
        self.drip_seconds = 0.0
        self.requests: list[bytes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.publish(*keys)
        self._server = socketserver.ThreadingTCPServer((LOOPBACK, 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.port: int = self._server.server_address[1]
        self.url = f"http://{LOOPBACK}:{self.port}/keys"

    def publish(self, *keys: object) -> None:
        """Answer with a set of these keys from now on."""
        self.answer = response(key_set(*keys))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *ended: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        server = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                head = b""
                while b"\r\n\r\n" not in head:
                    received = self.request.recv(_HEAD_BYTES)
                    if not received:
                        return
                    head += received
                server.requests.append(head)
                answer, first = server.answer, server.before_gate
                try:
                    self.request.sendall(answer[:first])
                    server.gate.wait(_HOLD_SECONDS)
                    if server.drip_seconds == 0.0:
                        self.request.sendall(answer[first:])
                        return
                    for byte in answer[first:]:
                        self.request.sendall(bytes((byte,)))
                        time.sleep(server.drip_seconds)
                except OSError:
                    return  # the gateway has hung up: what it is tested for

        return Handler
