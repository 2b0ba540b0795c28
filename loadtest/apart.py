"""A network namespace of one's own, in which the clients' half of TCP is on the clients' core.

On one machine the kernel carries a packet through the receiver's half of TCP while the sender's
`send()` lasts, so the server pays for it; with clients on other machines it would not. Receive
packet steering (RPS) hands it to a core, which is the clients' here. That core then has to be
woken, at a cost that is the sender's: once for each message of a server that is slower than it,
once a burst for one that is not. A network card is told of packets in the same way.

Linux, root and util-linux's `unshare`; nothing outside of the namespace is changed.
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
    """Run this command again within such a namespace; within it, do nothing.

    Raises:
        LoadtestError: something that it takes is not there.
    """
    if os.environ.get(_INSIDE):
        return
    missing = [tool for tool in ("unshare", "ip", "mount") if shutil.which(tool) is None]
    if missing or os.geteuid():
        raise LoadtestError(f"--apart needs root, and: {', '.join(missing) or 'nothing else'}")
    os.environ[_INSIDE] = "1"
    mask = f"{sum(1 << core for core in OTHER_CORE):x}"
    again = [sys.executable, "-m", "loadtest.push", *sys.argv[1:]]
    command = ["unshare", "--net", "--mount", "sh", "-c", _SET_UP, "sh", mask, *again]
    os.execvp(command[0], command)
