"""The case files of the Autobahn test suite, run by kosoku against an echo on both wires.

12.* and 13.* are about compression, which is not offered. kosoku has a process of its own: it
puts the suite's stand-ins for `autobahn` and `pkg_resources` into `sys.path`.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

pytestmark = pytest.mark.anyio

#: How many cases each chapter has: none may go missing unnoticed.
CHAPTERS: Final = {
    "1": 16,
    "2": 11,
    "3": 7,
    "4": 10,
    "5": 20,
    "6": 145,
    "7": 37,
    "9.1": 6,
    "9.2": 6,
    "9.3": 9,
    "9.4": 9,
    "9.5": 6,
    "9.6": 6,
    "9.7": 6,
    "9.8": 6,
    "10": 1,
}
#: What each case has to come out as, its messages and its close, where that is not OK and OK.
NOT_OK: Final = {
    # One frame in three chops: a frame's text is looked at when the frame is whole. It is refused
    # all the same, and RFC 6455 (§8.1) does not say when.
    "6.4.3": ("NON-STRICT", "OK"),
    "6.4.4": ("NON-STRICT", "OK"),
    # Informational whatever happens: RFC 6455 does not say what should.
    "7.1.6": ("INFORMATIONAL", "INFORMATIONAL"),
    "7.13.1": ("INFORMATIONAL", "INFORMATIONAL"),
    "7.13.2": ("INFORMATIONAL", "INFORMATIONAL"),
}
#: Cases at once: many wait a second each; more at once would make those late that are timed.
AT_ONCE: Final = 8
SECONDS: Final = 300.0


@pytest.mark.parametrize("chapter", CHAPTERS)
async def test_every_case_passes(chapter: str, echo_url: str, tmp_path: Path) -> None:
    results = await run_cases(f"{chapter}.*", echo_url, tmp_path)
    failures = [text for case, result in results.items() for text in faults(case, result, tmp_path)]
    assert not failures, "\n".join(["", *failures])
    assert len(results) == CHAPTERS[chapter]


async def run_cases(cases: str, url: str, reports: Path) -> dict[str, Any]:
    """Run the cases that a pattern names; give the index that kosoku writes, by case."""
    kosoku = Path(sys.executable).with_name("kosoku")
    process = await asyncio.create_subprocess_exec(
        kosoku, url, "--include", cases, "--parallelism", str(AT_ONCE), "--outdir", reports,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    index = reports / "index.json"
    assert index.exists(), said.decode()
    (results,) = json.loads(index.read_text()).values()  # one server, so one agent
    assert isinstance(results, dict)
    return results


def faults(case: str, result: dict[str, Any], reports: Path) -> Iterator[str]:
    """Give what is wrong with a case's result, with the report's own words."""
    seen = (result["behavior"], result["behaviorClose"])
    expected = NOT_OK.get(case, ("OK", "OK"))
    if seen != expected:
        report = json.loads((reports / result["reportfile"]).read_text())
        yield f"{case}: {seen}, not {expected}: {report['result']} {report['resultClose']}"
