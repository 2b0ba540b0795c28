"""What a gateway makes of its settings before the wings get them."""

from __future__ import annotations

import pytest

from gateway.server import _bounds, _probes
from gateway.settings import GatewaySettings
from tests.support.processes import INTERNAL_SECRET, JWT_SECRET

SLACK_SECONDS = 2.0


def of(**given: float) -> GatewaySettings:
    return GatewaySettings.model_validate(
        {"jwt_secret": JWT_SECRET, "internal_secret": INTERNAL_SECRET, **given}
    )


@pytest.mark.parametrize("heartbeat", [0.1, 1.0, 2.5, 25.0, 60.0, 240.0])
@pytest.mark.parametrize("timeout", [0.1, 1.0, 2.5, 10.0, 60.0, 240.0])
def test_a_parked_poll_of_a_vanished_client_ends_as_a_held_connection_does(
    heartbeat: float, timeout: float
) -> None:
    settings = of(heartbeat_seconds=heartbeat, heartbeat_timeout_seconds=timeout)
    probes, bounds = _probes(settings), _bounds(settings)
    assert probes.after_seconds >= 1
    assert probes.interval_seconds >= 1
    assert probes.silence_seconds >= timeout, "the kernel ends a socket no earlier (tcp(7))"
    ends_in = probes.silence_seconds + bounds.poll_vanished_seconds
    assert ends_in <= heartbeat + timeout + SLACK_SECONDS
    assert ends_in >= min(heartbeat + timeout, bounds.poll_grace_seconds)


def test_by_default_a_probe_follows_after_12_s_and_18_s_are_left_after_two() -> None:
    settings = of()
    probes, bounds = _probes(settings), _bounds(settings)
    assert (probes.after_seconds, probes.interval_seconds) == (12, 5)
    assert bounds.poll_vanished_seconds == 18.0


def test_the_grace_of_a_vanished_client_is_no_longer_than_anothers() -> None:
    assert _bounds(of(poll_grace_seconds=3.0)).poll_vanished_seconds == 3.0
