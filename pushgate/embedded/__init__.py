"""The real servers that `pushgate dev` starts in place of a Redis and a Kafka of yours.

Each runs as a child process on 127.0.0.1, keeps nothing on disk after it stops, and ends with
the process that started it, however that ends.
"""

import importlib.util
import shutil
import socket
from collections.abc import Sequence
from typing import Final

from pushgate.errors import PushgateError

LOOPBACK: Final = "127.0.0.1"


class EmbeddedError(PushgateError):
    """An embedded server could not be started; the message says why, and what to do."""


def require(package: str) -> None:
    """Raise EmbeddedError, saying what to install, unless `package` can be imported."""
    if importlib.util.find_spec(package) is None:
        raise EmbeddedError(f"{package} is not installed: pip install 'pushgate[dev]'")


def choose_port(preferred: int = 0) -> int:
    """Give `preferred` where it is free on 127.0.0.1, and any free port where it is not or is 0.

    The port is free when this returns; another process may still take it before you do.
    """
    for port in (preferred, 0):
        with socket.socket() as probe:
            # As servers do: a port whose last connections linger in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            chosen: int = probe.getsockname()[1]
            return chosen
    raise EmbeddedError(f"no free port is left on {LOOPBACK}")


def tied_to_parent(command: Sequence[str]) -> list[str]:
    """Wrap `command` so that the kernel kills it when the thread that started it ends.

    Only Linux can (prctl PR_SET_PDEATHSIG, through util-linux's setpriv, which replaces itself by
    the command: the pid is the server's). Elsewhere a parent that is killed leaves it running.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", *command] if setpriv else list(command)
