"""Runs a module as `python -m` would, and times a full garbage collection on each SIGUSR1.

Every collection adds a line of JSON to FILE: its milliseconds, the objects freed, and the objects
that the collector tracks afterwards.

    python -m loadtest.timed_collection FILE MODULE [ARGUMENT ...]
"""

from __future__ import annotations

import gc
import json
import runpy
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Run the module, and collect garbage on SIGUSR1."""
    file, module = Path(sys.argv[1]), sys.argv[2]

    def collect(number: int, frame: object) -> None:  # noqa: ARG001
        began = time.perf_counter()
        freed = gc.collect()
        milliseconds = (time.perf_counter() - began) * 1e3
        figures = {"ms": milliseconds, "freed": freed, "tracked": len(gc.get_objects())}
        with file.open("a") as log:
            log.write(json.dumps(figures) + "\n")

    signal.signal(signal.SIGUSR1, collect)
    sys.argv = sys.argv[2:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
