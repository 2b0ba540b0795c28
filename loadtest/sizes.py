"""Sizes of clients: ours, socket.io-client and centrifuge, bundled alike as a page imports them.

Bundled with esbuild, minified, compressed with `gzip -9`. Beside them the script that gateways
serve, which is built more tightly, from the same sources.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from loadtest.processes import LoadtestError
from loadtest.report import Report

MOST_GZIPPED: Final = 6 * 1024
"""Bytes of the script that gateways serve."""
_ROOT: Final = Path(__file__).parents[1]
_BUNDLES: Final = Path(__file__).with_name("bundles")
_NAME: Final = "pushgate-client"
_PAGES: Final = {
    _NAME: "import {PushClient} from './pushgate-client/dist/index.js'; new PushClient('/');",
    "socket.io-client": "import {io} from 'socket.io-client'; io('/');",
    "centrifuge": "import {Centrifuge} from 'centrifuge'; new Centrifuge('/').connect();",
}


def _bundle(folder: Path) -> dict[str, dict[str, int]]:
    """Install the clients' packages below `folder`; give each client's bytes."""
    shutil.copytree(_BUNDLES, folder, dirs_exist_ok=True)
    client = folder / _NAME
    shutil.copytree(
        _ROOT / "client", client, ignore=shutil.ignore_patterns("node_modules", "dist", "examples")
    )
    (folder / "gateway").mkdir()  # where the package's build puts the script
    _run(folder, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    _run(client, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
    _run(client, "npm", "run", "build")
    sizes: dict[str, dict[str, int]] = json.loads(
        _run(folder, "node", "bundle.mjs", json.dumps(_PAGES))
    )
    return sizes


def _run(folder: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadtestError(
            f"{' '.join(command[:3])}: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def main() -> None:
    """Bundle the clients and compare."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.sizes")
    parser.add_argument("--save", action="store_true", help="keep the figures in results/")
    arguments = parser.parse_args()
    report = Report("sizes")
    script = (_ROOT / "gateway/pushgate.js").read_bytes()
    served = len(gzip.compress(script, compresslevel=9, mtime=0))
    with tempfile.TemporaryDirectory() as folder:
        sizes = _bundle(Path(folder))
    sizes["pushgate.js"] = {"minified": len(script), "gzipped": served}
    for name, size in sizes.items():
        ratio = size["gzipped"] / served
        report.figures[name] = {**size, "ratio": ratio}
        report.line(f"{name}: {size['gzipped']:,} B gzipped; {ratio:.2f} × pushgate.js")
    report.bound(f"pushgate.js ≤ {MOST_GZIPPED:,} B", holds=served <= MOST_GZIPPED)
    report.finish(save=arguments.save)


if __name__ == "__main__":
    main()
