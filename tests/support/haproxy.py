"""HAProxy in front of gateways, with the configuration that deploy/haproxy ships."""

import os
import shutil
import string
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

import pytest

from tests.support.processes import free_port, http_status, wait_until

CONFIGURATION: Final = Path(__file__).parents[2] / "deploy/haproxy/haproxy.cfg"
#: The names of the servers that the shipped configuration has.
_SHIPPED: Final = "ab"


class Balanced(Protocol):
    """A gateway as HAProxy sees it."""

    @property
    def port(self) -> int:
        """The port on 127.0.0.1 that clients are sent to."""

    @property
    def internal_port(self) -> int:
        """The port on 127.0.0.1 whose `/readyz` is asked."""


@contextmanager
def haproxy(
    *gateways: Balanced, configuration: Path = CONFIGURATION, send_proxy: bool = False
) -> Iterator[int]:
    """Run HAProxy in front of two gateways or more; gives its port once it answers.

    Skips the test where HAProxy is not installed, unless PUSHGATE_REQUIRE_HAPROXY is 1.
    """
    binary = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
    if binary is None:
        assert os.environ.get("PUSHGATE_REQUIRE_HAPROXY") != "1", "haproxy is required and missing"
        pytest.skip("needs haproxy, which is not installed")
    names = string.ascii_lowercase[: len(gateways)]
    port = free_port()
    env = {"PUSHGATE_HAPROXY_BIND": f"127.0.0.1:{port}"}
    for name, gateway in zip(names.upper(), gateways, strict=True):
        env[f"PUSHGATE_GATEWAY_{name}"] = f"127.0.0.1:{gateway.port}"
        env[f"PUSHGATE_GATEWAY_{name}_HEALTH"] = f"127.0.0.1:{gateway.internal_port}"
    if send_proxy:
        env["PUSHGATE_HAPROXY_SEND_PROXY_V2"] = "1"
    with tempfile.TemporaryFile() as log, tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(configuration.read_text() + _servers(names.removeprefix(_SHIPPED)))
        file.flush()
        process = subprocess.Popen(
            [binary, "-db", "-f", file.name],
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_until(lambda: process.poll() is not None or _answers(port), "haproxy answers")
            assert process.poll() is None, "haproxy ended at its start"
            yield port
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace"))  # noqa: T201 - pytest shows it
            raise
        finally:
            process.kill()
            process.wait()


def _servers(names: str) -> str:
    """Give the lines of servers that the shipped configuration, which ends with its servers, lacks.

    They are as the configuration's own.
    """
    return "".join(
        f'    server {name} "${{PUSHGATE_GATEWAY_{name.upper()}}}" '
        f'check addr "${{PUSHGATE_GATEWAY_{name.upper()}_HEALTH}}"\n'
        for name in names
    )


def _answers(port: int) -> bool:
    return http_status(port, "/readyz") == 200
