"""A network namespace for one benchmark, in which the clients' half of TCP runs on their own core.

On one machine the kernel carries a packet through the receiver's half of TCP within the sender's
`send()`, so the server pays for the receiver's half. With clients on other machines the server
would not pay. Receive packet steering (RPS) hands packets to a chosen core for the receiver's half;
here the clients' core is chosen. Waking the clients' core is then work of the sender: once for
every message where the server is slower than the clients' core, once for a burst of messages where
the server is faster. A network card is notified of packets in the same way.

Linux, root and util-linux's `unshare` are needed; nothing outside of the namespace is changed.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import Final

from loadtest.processes import OTHER_CORE, LoadtestError

_INSIDE: Final = "PUSHGATE_LOADTEST_APART"
_SET_UP: Final = """\
set -e
mount -t sysfs none /sys
ip link set lo up
echo "$1" > /sys/class/net/lo/queues/rx-0/rps_cpus
shift
exec "$@"
"""


def go_apart() -> None:
    """Run this command again within a new network namespace; do nothing where that has been done.

    Raises:
        LoadtestError: a tool is missing, or the user is not root.
    """
    if os.environ.get(_INSIDE):
        return
    missing = [tool for tool in ("unshare", "ip", "mount") if shutil.which(tool) is None]
    if missing or os.geteuid():
        raise LoadtestError(f"--apart needs root, and: {', '.join(missing) or 'nothing else'}")
    os.environ[_INSIDE] = "1"
    mask = f"{sum(1 << core for core in OTHER_CORE):x}"
    benchmark = [sys.executable, "-m", "loadtest.push", *sys.argv[1:]]
    command = ["unshare", "--net", "--mount", "sh", "-c", _SET_UP, "sh", mask, *benchmark]
    os.execvp(command[0], command)
