"""requirements/licences.md: the licence of each package that a gateway or a processor needs.

Written by `make licences` from the metadata of the installed packages.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageMetadata, metadata
from pathlib import Path
from typing import Final, NamedTuple

LOCK: Final = Path(__file__).parents[2] / "requirements" / "run.txt"
#: Licences that somebody has judged: none binds a service that uses the package as it is. MPL-2.0
#: asks for the source of changed files, and no file is changed.
ACCEPTED: Final = frozenset(
    {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MIT-0", "MPL-2.0", "PSF-2.0"}
)
_PIN: Final = re.compile(r"([a-z0-9._-]+)==([^ ]+)")
#: Classifiers and free texts of packages without a licence expression, and their SPDX names.
_SPDX: Final[Mapping[str, str]] = {
    "Apache 2": "Apache-2.0",
    "License :: OSI Approved :: MIT License": "MIT",
    "MIT License": "MIT",
}
_HEAD: Final = """\
# Licences

Of the packages in `run.txt`, which a gateway, a processor and the image have. Written by
`make licences` from the packages' own metadata; a test compares, and fails for a licence that
nobody has judged yet. The client for browsers has no dependencies.

| package | version | licence |
|---|---|---|
"""


class Row(NamedTuple):
    """A locked package, and its licence as an SPDX expression."""

    package: str
    version: str
    licence: str


def rows() -> Iterator[Row]:
    """Yield a row for each locked package, in the order of the lock file.

    Raises:
        PackageNotFoundError: a locked package is not installed here.
        ValueError: another version is installed, or a licence is told in words that are not known.
    """
    for line in LOCK.read_text("utf-8").splitlines():
        if match := _PIN.match(line):
            name, version = match.groups()
            package = metadata(name)
            if package["Version"] != version:
                raise ValueError(f"{name} is {package['Version']} here, and locked as {version}")
            yield Row(name, version, _licence(package))


def _licence(package: PackageMetadata) -> str:
    """Return an SPDX expression, from the newer of the fields that say a licence (PEP 639)."""
    classifiers = package.get_all("Classifier") or []
    fields = ("License-Expression", "License")
    told = [str(package[field]) for field in fields if field in package] + classifiers
    for text in told:
        licence = _SPDX.get(text, text)
        if set(names(licence)) <= ACCEPTED:
            return licence
    raise ValueError(f"{package['Name']}: none of {told} is an accepted licence")


def names(licence: str) -> list[str]:
    """Return the licences in an SPDX expression."""
    return re.split(r" (?:AND|OR) ", licence)


def page() -> str:
    """Return the text of requirements/licences.md."""
    return _HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())


if __name__ == "__main__":
    sys.stdout.write(page())
