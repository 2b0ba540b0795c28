"""docs/troubleshooting.md has every answer, close and outcome of the code, and no other.

The texts are read from the code's syntax trees, so that a new refusal without a row fails here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import pytest

from gateway import internal
from gateway.connections.closes import CLOSES
from gateway.entry import auth
from gateway.refusals import OTHER, REASONS, reason_of
from processor.outcomes.outcome import Kind
from registry import message
from tests.support.markdown import ROOT, Page, codes
from tests.support.spelled import HOLE, refused_in, said_in_calls, said_in_returns, sources

PAGE: Final = Page(ROOT / "docs" / "troubleshooting.md")
PROTOCOL: Final = Page(ROOT / "docs" / "protocol.md")
#: What may refuse a request on the public port. An upgrade is one of the internal port's.
PUBLIC: Final = [
    file
    for file in sources("gateway/entry", "gateway/http", "gateway/transports", "gateway/app.py")
    if file.name != "upgrade.py"
]
INTERNAL: Final = sources("gateway/internal.py", "gateway/push.py", "gateway/http/upgrade.py")
ADMISSION, NODE, AUTH, CLAIMS, SSE, WEBSOCKET, PROCESSOR = sources(
    "gateway/connections/admission.py", "gateway/connections/node.py", "gateway/entry/auth.py",
    "gateway/entry/claims.py", "gateway/transports/sse.py", "gateway/transports/websocket.py",
    "processor/server.py",
)  # fmt: skip
#: Starlette's own words for what no route takes.
STARLETTE: Final = {(404, "Not Found"), (405, "Method Not Allowed")}
#: The word for a limit that has refused a client and, asked why, no longer would (entry.py).
NO_LIMIT: Final = "overloaded"
#: Failures of a forward that are never the reason of an outcome (sending/dispatch.py): the user is
#: not there, or the node is asked again, or counts as a node without the user.
NO_OUTCOMES: Final = {"no-device", "gone", "misdirected"}
TOKEN_REFUSED: Final = "token refused: "

Answer = tuple[int, str]


def public_refusals() -> set[Answer]:
    made = refused_in(PUBLIC, "HTTPException", "BadHandshake", "_refuse") | STARLETTE
    made |= {(401, t) for t in unauthenticated() if not t.startswith(TOKEN_REFUSED)}
    made.add((401, TOKEN_REFUSED + HOLE))
    limits = said_in_returns(ADMISSION, "_refusal") + said_in_returns(ADMISSION, "user_refusal")
    waits = said_in_calls(PUBLIC, "Overloaded", at=1)
    return made | {(503, text) for text in [*limits, *waits, NO_LIMIT]}


def test_every_refusal_of_the_public_port_is_there_and_no_other() -> None:
    assert faults(public_refusals(), answers("Refusals")) == []


def test_every_refusal_is_counted_by_a_reason_and_every_reason_is_of_a_refusal() -> None:
    texts = {text for _, text in public_refusals() | answers("The internal port")}
    texts |= {f"{TOKEN_REFUSED}{text}" for text in first_cells("Token refused")}
    assert {text for text in texts if reason_of(text) == OTHER} == set()
    assert {*map(reason_of, texts)} == {*REASONS}
    assert reason_of("a route that somebody has added: no") == OTHER


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("wait is a number of seconds: 'alice'", "wait is"),
        ("token refused: expired 12 s ago", "token refused: expired"),
        ("token refused: sub is missing", "token refused"),
        ("too many new connections", "too many new connections"),
        ("too many users; at most 10000", "too many"),
    ],
)
def test_the_longest_beginning_is_the_reason(text: str, reason: str) -> None:
    assert reason_of(text) == reason


def test_every_fault_of_a_token_is_there_and_no_other() -> None:
    faults_of_tokens = {t.removeprefix(TOKEN_REFUSED) for t in unauthenticated()} - {HOLE}
    faults_of_tokens -= set(unauthenticated())
    made = faults_of_tokens | {text for _, text in auth._FAULTS}
    made |= set(said_in_calls([CLAIMS], "BadClaims"))
    assert faults(as_answers(made), as_answers(first_cells("Token refused"))) == []


def test_the_refusal_of_another_users_token_is_there() -> None:
    (text,) = said_in_calls([NODE], "Unrefreshed")
    assert f"`{text}`" in PAGE.path.read_text()


def test_every_close_is_there_with_its_reason_and_no_other() -> None:
    rows = [(int(code), reason) for code, reason, _ in PAGE.rows("Closes")]
    assert rows == [(close.code, close.reason) for close in CLOSES]


def test_every_control_is_there_and_no_other() -> None:
    sent = said_in_calls([WEBSOCKET], "control_frame") + said_in_calls([SSE], "control")
    sent += re.findall(r'event="pushgate\.(\w+)"', SSE.read_text())
    taken = re.findall(r'control: Literal\["(\w+)"\]', WEBSOCKET.read_text())
    assert set(first_cells("Controls")) == {*sent, *taken}


def test_every_outcome_is_there_and_no_other() -> None:
    assert first_cells("Outcomes") == [kind.value for kind in Kind]


def test_every_rule_that_rejects_a_record_is_there_and_no_other() -> None:
    files = sources("registry/message.py", "processor/reading/message.py")
    made = {*said_in_calls(files, "RejectedRecord"), *message._HEADERS}
    assert set(first_cells("Rejected")) == made


def test_every_reason_of_a_failure_is_there_and_no_other() -> None:
    made = set(said_in_calls(sources("processor/sending"), "Failure"))
    assert made >= NO_OUTCOMES, "a failure of this name is not made any more"
    documented = set(first_cells("Failed"))
    assert {reason.replace("NNN", HOLE) for reason in documented} == made - NO_OUTCOMES
    (row,) = [row for row in PROTOCOL.rows("Outcomes") if row[0] == "failed"]
    assert documented <= set(codes(row[1]))


def test_every_refusal_of_the_internal_port_is_there_and_no_other() -> None:
    made = refused_in(INTERNAL, "HTTPException", "BadBatch")
    assert faults(made, answers("The internal port")) == []


def test_every_error_of_a_push_is_there_with_its_status() -> None:
    rows = [row for row in PAGE.rows("The internal port") if codes(row[0])]
    assert {codes(error)[0]: int(status) for error, status, _ in rows} == internal._STATUS


def test_every_status_of_readyz_is_there_and_no_other() -> None:
    made = {text for text in said_in_returns(NODE, "status") if text != "ready"} | {"ready"}
    for text in said_in_returns(PROCESSOR, "_waits_for"):
        if text == f"waiting for {HOLE}":
            made |= {"waiting for Kafka", "waiting for the registry"}
        elif text.startswith("no live gateway"):
            made.add(text)
    assert faults(as_answers(made), as_answers(first_cells("Readiness"))) == []


def test_a_text_that_the_page_lacks_or_makes_up_is_found() -> None:
    made = {(400, f"wait is {HOLE}"), (403, "no")}
    assert faults(made, {(400, "wait is a number"), (403, "no")}) == []
    assert faults(made, {(400, "wait is …")}) == ["the page lacks 403 no"]
    assert faults({(403, "no")}, {(403, "no"), (401, "no")}) == ["the code lacks 401 no"]


def unauthenticated() -> list[str]:
    return said_in_calls([AUTH], "Unauthenticated", "UnknownKey")


def answers(heading: str) -> set[Answer]:
    """Return statuses and bodies from a section's rows that begin with a status."""
    rows = [row for row in PAGE.rows(heading) if row[0].isdigit()]
    return {(int(status), text) for status, bodies, _ in rows for text in codes(bodies)}


def first_cells(heading: str) -> list[str]:
    """Return the texts in code of the first column of a section's tables, in order."""
    return [text for row in PAGE.rows(heading) for text in codes(row[0])]


def as_answers(texts: Collection[str]) -> set[Answer]:
    return {(0, text) for text in texts}


def faults(made: Collection[Answer], documented: Collection[Answer]) -> list[str]:
    """Compare what the code says, where a hole stands for anything, with what the page has."""
    pairs = {(answer, row) for answer in made for row in documented if is_said(answer, row)}
    lacking = set(made) - {answer for answer, _ in pairs}
    unknown = set(documented) - {row for _, row in pairs}
    return [f"the page lacks {status} {text}" for status, text in sorted(lacking)] + [
        f"the code lacks {status} {text}" for status, text in sorted(unknown)
    ]


def is_said(answer: Answer, row: Answer) -> bool:
    """Whether a row of the page is an answer of the code; both may have holes."""
    (status, text), (row_status, row_text) = answer, row
    as_said, as_written = (
        re.compile(".+".join(map(re.escape, t.split(HOLE)))) for t in (text, row_text)
    )
    fits = as_said.fullmatch(row_text) or as_written.fullmatch(text)
    return status == row_status and fits is not None
