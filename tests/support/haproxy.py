"""HAProxy in front of gateways, with the configuration that deploy/haproxy ships."""

import signal
import string
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.support.balancer import Balanced, Balancer, balancing, executable
from tests.support.processes import free_port

CONFIGURATION: Final = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
#: The names of the servers that the shipped configuration has.
_SHIPPED: Final = "ab"


@contextmanager
def haproxy(
    *gateways: Balanced, configuration: Path = CONFIGURATION, send_proxy: bool = False
) -> Iterator[Balancer]:
    """Run HAProxy in front of two gateways or more; gives it once it answers.

    Skips the test where HAProxy is not installed, unless PUSHGATE_REQUIRE_HAPROXY is 1.
    """
    port = free_port()
    env = {"PUSHGATE_HAPROXY_BIND": f"127.0.0.1:{port}"}
    if send_proxy:
        env["PUSHGATE_HAPROXY_SEND_PROXY_V2"] = "1"
    with balancing(
        [executable("haproxy"), "-W", "-db", "-f"],
        port=port,
        gateways=gateways,
        render=partial(_rendered, configuration),
        reload_signal=signal.SIGUSR2,
        env=env,
    ) as balancer:
        yield balancer


def _rendered(configuration: Path, gateways: Sequence[Balanced]) -> str:
    """Return the configuration behind its variables: a reload has its master's environment."""
    names = string.ascii_lowercase[: len(gateways)]
    variables = ["global"]
    for name, gateway in zip(names.upper(), gateways, strict=True):
        variables.append(f"    setenv PUSHGATE_GATEWAY_{name} 127.0.0.1:{gateway.port}")
        health = f"127.0.0.1:{gateway.internal_port}"
        variables.append(f"    setenv PUSHGATE_GATEWAY_{name}_HEALTH {health}")
    text = configuration.read_text() + _servers(names.removeprefix(_SHIPPED))
    return "\n".join([*variables, "", text])


def _servers(names: str) -> str:
    """Give the lines of servers that the shipped configuration, which ends with its servers, lacks.

    They are as the configuration's own.
    """
    return "".join(
        f'    server {name} "${{PUSHGATE_GATEWAY_{name.upper()}}}" '
        f'check addr "${{PUSHGATE_GATEWAY_{name.upper()}_HEALTH}}"\n'
        for name in names
    )
