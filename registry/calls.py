"""Calls to gateways whose addresses come from the registry: where they go, and what they show.

Redis is not trusted with the internal secret, nor with payloads. Whoever writes there can name any
address as a node's. So a call shows a proof (proof.py), goes only into networks that the operator
allows, and with a CA only to servers with a certificate of this CA.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final, Self

from registry.directory import Node
from registry.errors import RegistryError
from registry.message import EPOCH_HEADER, NODE_HEADER
from registry.networks import Network, authority, host_and_port, networks, plain, within
from registry.proof import SCHEME, Kind, proof
from registry.settings import CallSettings, InternalAuth

#: What an operator should know where a process answers 401 or 403.
REFUSED: Final = (
    "the internal secret is refused: there is another PUSHGATE_INTERNAL_SECRET, or a gateway older "
    "than this version, which takes no proofs: upgrade gateways first (tools can go on with "
    "PUSHGATE_INTERNAL_AUTH=bearer)"
)
#: What an operator should know where a TLS handshake with a gateway fails.
NO_TLS: Final = (
    "no TLS with the gateway: its internal port needs PUSHGATE_INTERNAL_TLS_CERT, a certificate "
    "signed by the CA in PUSHGATE_INTERNAL_TLS_CA"
)


class OutsideNetworks(RegistryError):
    """The address of a node is in none of the allowed networks: nothing may be sent there."""

    def __init__(self, node: Node, setting: str) -> None:
        super().__init__(
            f"{node.address}, the address of node {node.name} in the registry, is in none of "
            f"{setting}, and nothing is sent there"
        )


class GatewayCalls:
    """How one process calls gateways. Callers make the headers of a node once.

    `tls` is the context of all connections. Without a CA calls are plaintext, and the context loads
    no certificates: the system's would take 21–60 ms and 0.7 MB a client (measured).
    """

    def __init__(
        self,
        *,
        secret: str,
        auth: InternalAuth = "proof",
        allowed: Sequence[Network] = (),
        ca_file: str | None = None,
        setting: str = "PUSHGATE_GATEWAY_NETWORKS",
        kind: Kind = "gateway",
    ) -> None:
        """`allowed` are the networks of gateways, all where there are none; `ca_file` is for TLS.

        `setting` names the setting of the networks in errors; `kind` is that of the processes.

        Raises:
            OSError: the file can't be read, or has no certificate.
        """
        self._secret = secret
        self._auth = auth
        self._is_within = within(allowed) if allowed else None
        self._setting = setting
        self._kind: Kind = kind
        self._scheme = "http" if ca_file is None else "https"
        self.tls = _tls_context(ca_file)

    @classmethod
    def of(cls, settings: CallSettings) -> Self:
        """Return the calls that settings describe."""
        return cls(
            secret=settings.internal_secret.get_secret_value(),
            auth=settings.internal_auth,
            allowed=networks(settings.gateway_networks),
            ca_file=settings.internal_tls_ca,
        )

    def headers(self, node: Node) -> dict[str, str]:
        """Return the header fields of calls to `node`: the credential, and the node's names.

        By the names another node at this address, such as a later start, can tell the caller that
        the node is gone (421).
        """
        shown = f"{SCHEME} {proof(self._secret, node, kind=self._kind)}"
        if self._auth == "bearer":
            shown = f"Bearer {self._secret}"
        return {"authorization": shown, NODE_HEADER: node.name, EPOCH_HEADER: node.epoch}

    async def url(self, node: Node) -> str:
        """Return scheme, host and port of calls to `node`.

        Where networks are allowed the host is an IP address in one of them, also for an address
        with a host name: a connection goes to the address that was checked, whatever the name means
        a moment later.

        Raises:
            OutsideNetworks: no address of the node is in an allowed network.
            OSError, ValueError: the host name can't be resolved, or is none.
        """
        address = node.address if self._is_within is None else await self._checked(node)
        return f"{self._scheme}://{address}"

    async def _checked(self, node: Node) -> str:
        assert self._is_within is not None  # noqa: S101 - `url` asks only where networks are set
        host, port = host_and_port(node.address)
        for address in await _ip_addresses(host):
            if self._is_within(address):
                return authority(address, port)
        raise OutsideNetworks(node, self._setting)


async def _ip_addresses(host: str) -> list[str]:
    try:
        return [str(plain(ip_address(host)))]
    except ValueError:
        loop = asyncio.get_running_loop()
        answers = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in answers]


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        # Gateways are called by IP addresses that change with each start, so certificates can't
        # name them: the CA's signature is what counts, and the CA must sign nothing else.
        context.check_hostname = False
        context.load_verify_locations(ca_file)
    return context


def tls_fault(error: BaseException | None) -> ssl.SSLError | None:
    """Return the error of TLS that is the cause of `error`, or None where TLS is not the cause."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error
