"""`pushgate doctor`."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click

from pushgate import logs
from pushgate.commands.running import json_option, load_settings, print_json, run
from pushgate.descriptors import raise_limit
from pushgate.doctor.examination import Path, examine
from pushgate.doctor.finding import Finding, Severity
from pushgate.options import settings_options
from pushgate.printable import printable
from pushgate.seconds import Seconds
from pushgate.settings import DEV_FILE, DoctorSettings
from pushgate.token import RefusedClaims, mint

#: The exit status by the worst finding; 1 is the status of an error, 2 of wrong usage.
_STATUS: Final = {Severity.OK: 0, Severity.NOTE: 0, Severity.WARNING: 3, Severity.FAULT: 4}
_COLOURS: Final = {
    Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.FAULT: "red",
}  # fmt: skip
#: Finding's texts have names that others chose, but no secret; errors of libraries may be long.
_MOST_CHARACTERS: Final = 1_000
_INDENT: Final = " " * 8
_NARROWEST: Final = 40
_TOKEN_SECONDS: Final = 600
_USER: Final = "pushgate-doctor"


@click.command(epilog="Exit status: 0 nothing to mend, 3 warnings, 4 faults; 1 error, 2 wrong "
               "usage, 130 Ctrl-C.")  # fmt: skip
@click.option("--token", help="A client's token to verify; - reads standard input.")
@click.option("--through", metavar="URL",
              help="Hold connections through a balancer: gateways' public address.")  # fmt: skip
@click.option("--for", "seconds", type=Seconds(min=1), default=90.0, show_default=True,
              metavar="SECONDS", help="How long, with --through.")  # fmt: skip
@json_option
@settings_options(DoctorSettings)
def doctor(
    token: str | None, through: str | None, seconds: float, as_json: bool, **flags: Any
) -> None:
    """Look whether everything is set up right, and say what to do where it is not.

    Give it the settings of gateways and processors, on a host that reaches what they reach. Takes
    20 seconds at most, and with --through as much longer as --for says.
    """
    settings = load_settings(DoctorSettings, flags, files=(DEV_FILE,))
    if token == "-":  # noqa: S105 - no token, but where one is
        token = sys.stdin.readline().strip()
    path = None if through is None else _path(settings, through, token, seconds)
    raise_limit()  # as a gateway does
    began = time.monotonic()
    with _silent_libraries():
        findings = run(_examine(settings, token, path))
    if as_json:
        print_json(_as_json(findings, time.monotonic() - began))
    else:
        _print(findings)
    worst = max(_STATUS[finding.severity] for finding in findings)
    sys.exit(worst)


async def _examine(settings: DoctorSettings, token: str | None, path: Path | None) -> list[Finding]:
    # Libraries leave errors in futures that nobody awaits; the findings say what is wrong.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    return await examine(settings, token=token, path=path)


def _path(settings: DoctorSettings, url: str, token: str | None, seconds: float) -> Path:
    """Return the way through a balancer; without a token one is made.

    Raises:
        click.UsageError: the URL is none, or no token can be made.
    """
    if not url.startswith(("http://", "https://")):
        raise click.UsageError(f"--through is {url!r}: write http://host[:port] or https://…")
    if token is not None:
        return Path(url, token, seconds)
    if settings.jwt_secret is None or "HS256" not in settings.algorithms:
        raise click.UsageError("--through needs --token, or PUSHGATE_JWT_SECRET for HS256")
    secret, rules = settings.jwt_secret.get_secret_value(), settings.token_rules.claims
    try:
        made = mint(_USER, secret, ttl_seconds=int(seconds) + _TOKEN_SECONDS, rules=rules)
    except RefusedClaims as error:
        raise click.UsageError(str(error)) from error
    return Path(url, made, seconds)


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Keep libraries' log lines out of the report: the findings say the same."""
    logs.configure(as_json=False)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _print(findings: Sequence[Finding]) -> None:
    width = max(_NARROWEST, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 0
    for finding in findings:
        _print_finding(finding, width)
    counts = {each: sum(finding.severity is each for finding in findings) for each in Severity}
    click.echo(
        ", ".join(
            f"{counts[each]} {each.word}{'' if counts[each] == 1 else 's'}"
            for each in (Severity.FAULT, Severity.WARNING, Severity.NOTE)
        )
    )


def _print_finding(finding: Finding, width: int) -> None:
    word = click.style(f"{finding.severity.word:7}", fg=_COLOURS[finding.severity])
    click.echo(f"{word} {_wrapped(f'{finding.subject}: {finding.what}', width)}")
    for name, text in (("why", finding.why), ("do", finding.cure)):
        if text:
            click.echo(f"{_INDENT}{_wrapped(f'{name}: {text}', width)}")


def _wrapped(text: str, width: int) -> str:
    """Return a text that starts behind an indent, wrapped where there is a width."""
    shown = printable(text, most=_MOST_CHARACTERS)
    if not width:
        return shown
    wrapped = click.wrap_text(shown, width, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return wrapped.removeprefix(_INDENT)


def _as_json(findings: Sequence[Finding], seconds: float) -> dict[str, object]:
    return {
        "findings": [
            {
                "severity": finding.severity.word,
                "subject": finding.subject,
                "what": finding.what,
                "why": finding.why,
                "do": finding.cure,
            }
            for finding in findings
        ],
        "seconds": round(seconds, 1),
    }
