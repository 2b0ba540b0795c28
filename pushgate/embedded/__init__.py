"""The servers that `pushgate dev` starts where no Redis or no Kafka is configured.

An embedded server runs as a child process on 127.0.0.1, and keeps nothing on disk after its end.
The server ends with the process that started the server, however the process ends.
"""

import importlib.util
import shutil
import socket
from collections.abc import Sequence
from typing import Final

from pushgate.errors import PushgateError

LOOPBACK: Final = "127.0.0.1"


class EmbeddedError(PushgateError):
    """An embedded server could not be started; the text says why, and what to do."""


def require(package: str) -> None:
    """Raise EmbeddedError, with the install command, unless `package` can be imported."""
    if importlib.util.find_spec(package) is None:
        raise EmbeddedError(f"{package} is not installed: pip install '.[dev]', in a clone")


def choose_port(preferred: int = 0) -> int:
    """Give `preferred` if the port is free on 127.0.0.1; else, or for 0, give any free port.

    The port is free when the function returns. Another process may still take the port before the
    caller does.

    Raises:
        EmbeddedError: no port is free.
    """
    for port in (preferred, 0):
        with socket.socket() as probe:
            # As servers do: a port whose past connections linger in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise EmbeddedError(f"no free port is left on {LOOPBACK}")


def tied_to_parent(command: Sequence[str]) -> list[str]:
    """Wrap `command` so that the kernel kills the process when the starting thread ends.

    Only Linux can do so: with prctl PR_SET_PDEATHSIG, through util-linux's setpriv, which replaces
    itself by the command, so the pid is the server's. Elsewhere the command is returned unchanged,
    and a killed parent leaves the server running.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else list(command)
