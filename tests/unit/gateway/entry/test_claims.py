"""The rules for claims, at a time of the test's own: whom a token is for, and what is wrong."""

from typing import Any

import pytest

from gateway.connections.identity import Identity
from gateway.entry.claims import CLOCK_LEEWAY_SECONDS, BadClaims, ClaimRules, identity_of

NOW = 1_790_000_000.5
AT = int(NOW)
RULES = ClaimRules(audience=None, issuer=None, max_seconds=3_600)
CLAIMS: dict[str, Any] = {"sub": "alice", "exp": AT + 60}


def fault(claims: dict[str, Any], rules: ClaimRules = RULES) -> str:
    with pytest.raises(BadClaims) as caught:
        identity_of(claims, rules, now=NOW)
    return str(caught.value)


def test_good_claims_name_a_user_a_device_and_an_end() -> None:
    assert identity_of(CLAIMS, RULES, now=NOW) == Identity("alice", None, AT + 60)
    device = CLAIMS | {"device": "phone"}
    assert identity_of(device, RULES, now=NOW) == Identity("alice", "phone", AT + 60)


@pytest.mark.parametrize(
    ("exp", "said"),
    [
        (AT + 1, None),
        (AT, "expired 0 s ago"),
        (AT + 0.9, "expired 0 s ago"),  # a fraction of a second is cut off
        (AT - 12, "expired 12 s ago"),
        (AT - 86_400, "expired 86400 s ago"),
        (0, "expired decades ago"),
        (-1e308, "expired decades ago"),
        (AT + 3_600, None),
        (AT + 3_601, "exp is too far ahead"),
        (10**400, "exp is too far ahead"),
        (float("nan"), "exp is no number"),
        (float("inf"), "exp is no number"),
        (float("-inf"), "exp is no number"),
        (True, "exp is no number"),
        (str(AT + 60), "exp is no number"),
        ([], "exp is no number"),
        (None, "exp is missing"),
    ],
)
def test_exp_has_no_leeway(exp: object, said: str | None) -> None:
    claims = CLAIMS | {"exp": exp}
    if said is None:
        assert identity_of(claims, RULES, now=NOW).user == "alice"
    else:
        assert fault(claims) == said


@pytest.mark.parametrize("name", ["nbf", "iat"])
def test_an_issuers_clock_may_be_ahead_by_the_leeway(name: str) -> None:
    for ahead in (-86_400, 0, 5, CLOCK_LEEWAY_SECONDS):
        assert identity_of(CLAIMS | {name: AT + ahead}, RULES, now=NOW).user == "alice"
    said = f"not valid yet, {name} is"
    assert fault(CLAIMS | {name: AT + CLOCK_LEEWAY_SECONDS + 1}) == f"{said} 31 s ahead"
    assert fault(CLAIMS | {name: 10**400}) == f"{said} decades ahead"


@pytest.mark.parametrize("name", ["nbf", "iat"])
@pytest.mark.parametrize("value", [None, "later", [], True, float("nan"), float("inf")])
def test_a_time_that_is_no_number_is_said_to_be_none(name: str, value: object) -> None:
    assert fault(CLAIMS | {name: value}) == f"{name} is no number"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sub": None}, "sub is missing"),
        ({"sub": ""}, "sub is no user id"),
        ({"sub": 7}, "sub is no user id"),
        ({"device": ""}, "device is no device name"),
        ({"device": 7}, "device is no device name"),
        ({"jti": 7}, "jti is no string"),
    ],
)
def test_a_claim_that_breaks_its_rule_is_named(change: dict[str, Any], said: str) -> None:
    assert fault(CLAIMS | change) == said


@pytest.mark.parametrize(
    ("aud", "said"),
    [
        (None, "aud is missing"),
        ("", "aud is missing"),
        ([], "aud is missing"),
        (7, "aud is neither a name nor a list of names"),
        ([["push"]], "aud is neither a name nor a list of names"),
        ("web", "aud does not have the value of PUSHGATE_JWT_AUDIENCE"),
        (["web"], "aud does not have the value of PUSHGATE_JWT_AUDIENCE"),
    ],
)
def test_an_audience_that_is_not_the_right_one_is_said_to_be_so(aud: object, said: str) -> None:
    rules = ClaimRules(audience="push", issuer=None, max_seconds=3_600)
    assert fault(CLAIMS | {"aud": aud}, rules) == said
    assert identity_of(CLAIMS | {"aud": ["web", "push"]}, rules, now=NOW).user == "alice"


def test_an_issuer_that_is_not_the_right_one_is_said_to_be_so() -> None:
    rules = ClaimRules(audience=None, issuer="https://id.example", max_seconds=3_600)
    assert fault(CLAIMS, rules) == "iss is missing"
    for iss in ("https://id", ["https://id.example"], 7):
        assert fault(CLAIMS | {"iss": iss}, rules) == "iss is not the value of PUSHGATE_JWT_ISSUER"
    assert identity_of(CLAIMS | {"iss": "https://id.example"}, rules, now=NOW).user == "alice"


def test_no_fault_repeats_a_value() -> None:
    rules = ClaimRules(audience="push", issuer="https://id.example", max_seconds=3_600)
    good = CLAIMS | {"aud": "push", "iss": "https://id.example"}
    for name in ("sub", "device", "exp", "nbf", "iat", "aud", "iss"):
        value = "marker\n" if name in ("sub", "device") else "marker"
        assert "marker" not in fault(good | {name: value}, rules)
