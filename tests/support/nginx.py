"""nginx in front of gateways, with the configuration that deploy/nginx ships."""

import signal
import string
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.support.balancer import Balanced, Balancer, balancing, executable
from tests.support.processes import free_port

TEMPLATE: Final = Path(__file__).parents[2] / "deploy/nginx/nginx.conf.template"


@contextmanager
def nginx(*gateways: Balanced, send_proxy: bool = False) -> Iterator[Balancer]:
    """Run nginx in front of two gateways or more; gives it once it answers.

    Skips the test where nginx is not installed, unless PUSHGATE_REQUIRE_NGINX is 1.
    """
    port = free_port()
    with (
        tempfile.TemporaryDirectory() as directory,
        balancing(
            [executable("nginx"), "-e", "stderr", "-g", "daemon off;", "-c"],
            port=port,
            gateways=gateways,
            render=partial(_rendered, f"{directory}/pid", port, "on" if send_proxy else "off"),
            reload_signal=signal.SIGHUP,
            env={},
        ) as balancer,
    ):
        yield balancer


def judged(file: Path) -> str:
    """Return what nginx says of a configuration without running it."""
    checked = subprocess.run(
        [executable("nginx"), "-e", "stderr", "-t", "-c", file],
        check=False,
        text=True,
        capture_output=True,
    )
    return checked.stderr


def rendered(pid_file: str, **variables: str) -> str:
    """Return the shipped configuration, filled in as `envsubst` does, with another PID file.

    nginx removes its PID file at its end: never name a device, nor the system's own nginx's file.
    """
    text = string.Template(TEMPLATE.read_text()).substitute(variables)
    assert text.count("pid /run/nginx.pid;") == 1
    return text.replace("pid /run/nginx.pid;", f"pid {pid_file};")


def _rendered(pid_file: str, port: int, proxy_protocol: str, gateways: Sequence[Balanced]) -> str:
    a, b, *more = gateways
    text = rendered(
        pid_file,
        PUSHGATE_NGINX_BIND=f"127.0.0.1:{port}",
        PUSHGATE_NGINX_PROXY_PROTOCOL=proxy_protocol,
        PUSHGATE_GATEWAY_A=f"127.0.0.1:{a.port}",
        PUSHGATE_GATEWAY_B=f"127.0.0.1:{b.port}",
    )
    # The shipped configuration has two servers: further ones are as its last.
    *_, last = [line for line in text.splitlines() if f"server 127.0.0.1:{b.port} " in line]
    lines = [last, *(last.replace(f":{b.port} ", f":{each.port} ") for each in more)]
    return "\n".join(lines).join(text.rsplit(last, 1))
