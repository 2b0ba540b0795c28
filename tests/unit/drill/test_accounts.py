"""The drill's negative controls: what goes wrong with one message is found, and named rightly."""

import math

import pytest

from tests.drill.accounts import (
    Arrival,
    Client,
    Ending,
    Findings,
    Standing,
    Told,
    User,
    judge,
    latencies,
    spare,
)

BACK_SECONDS = 6.0


def user_of(*clients: Client, messages: int = 10) -> User:
    """Give a user whose message n is published and acknowledged at second n, and not told yet."""
    user = User("alice", list(clients))
    for number in range(messages):
        user.publish(float(number))
        user.acknowledged[number] = True
    return user


def connected(user: User, *, without: int | None = None) -> User:
    """Let the user's clients get all messages but one half a second after each was published."""
    for client in user.clients:
        if not client.sessions:
            client.open(-1.0)
        for number in range(len(user.published)):
            if number != without:
                client.arrive(number, number + 0.5)
    return user


def told(user: User, kind: str = "delivered", **others: str) -> User:
    """Give each message the outcome `kind`; `others` as `m3="offline"`."""
    for number, outcomes in enumerate(user.told):
        outcomes.append(Told(others.get(f"m{number}", kind), number + 0.2))
    return user


def findings_of(user: User) -> Findings:
    return judge([user], back_seconds=BACK_SECONDS)


def clean(findings: Findings) -> bool:
    return not any(
        (
            findings.lost,
            findings.told_wrongly,
            findings.disordered,
            findings.repeated,
            findings.gaps,
            findings.strays,
        )
    )


def test_what_arrives_and_is_told_is_clean() -> None:
    findings = findings_of(told(connected(user_of(Client()))))
    assert clean(findings)
    assert findings.published == findings.owed == 10
    assert findings.told == {"delivered": 10}


@pytest.mark.parametrize("kind", ["delivered", "offline", "failed"])
def test_what_did_not_arrive_is_lost_whatever_it_is_called(kind: str) -> None:
    findings = findings_of(told(connected(user_of(Client()), without=4), m4=kind))
    assert findings.lost == 1
    wrong = "delivered to nobody" if kind == "delivered" else kind
    assert findings.told_wrongly == {wrong: 1}
    assert findings.examples["lost"] == [f"alice.4 ({kind})"]


@pytest.mark.parametrize(
    ("roams", "drain", "wrong"),
    [(True, (4.0, 5.0), 0), (True, (5.0, 6.0), 1), (False, (4.0, 5.0), 1)],
)
def test_who_polls_from_node_to_node_may_be_offline_while_a_node_drains(
    roams: bool, drain: tuple[float, float], wrong: int
) -> None:
    client = Client(resumes=True, roams=roams, drains=[drain])
    findings = findings_of(told(connected(user_of(client)), m4="offline"))
    assert findings.told_wrongly["offline"] == wrong
    assert findings.lost == 0


def test_what_such_a_client_never_got_is_lost() -> None:
    client = Client(resumes=True, roams=True, drains=[(4.0, 5.0)])
    findings = findings_of(told(connected(user_of(client), without=4), m4="offline"))
    assert findings.lost == 1


def test_a_second_client_without_it_has_lost_it() -> None:
    first, second = Client(), Client()
    user = connected(user_of(first, second))
    second.arrivals = [arrival for arrival in second.arrivals if arrival.number != 4]
    findings = findings_of(told(user))
    assert findings.lost == 1
    assert not findings.told_wrongly


def test_what_kafka_did_not_acknowledge_is_not_counted() -> None:
    user = connected(user_of(Client()), without=9)
    user.acknowledged[9] = False
    assert findings_of(told(user, m9="offline")).published == 9


def test_a_message_has_one_outcome() -> None:
    user = told(connected(user_of(Client())))
    user.told[3].clear()
    user.told[4] *= 2
    assert findings_of(user).told_wrongly == {"untold": 1, "told twice": 1}


def test_a_repeat_in_one_session_is_found_and_a_repeat_in_the_next_is_none() -> None:
    client = Client()
    user = connected(user_of(client))
    (session,) = user.mark(Ending.LEFT)
    client.end(session, 20.0)
    client.open(21.0)
    client.arrive(9, 21.1)
    assert clean(findings_of(told(user)))
    client.arrive(9, 21.2)
    assert findings_of(user).repeated == 1


def test_a_late_message_is_out_of_order() -> None:
    client = Client()
    user = connected(user_of(client), without=2)
    client.arrive(2, 30.0)
    findings = findings_of(told(user))
    assert findings.disordered == 1
    assert findings.examples["out of order"] == ["alice.2"]


def moved(ending: Ending = Ending.CUT, *, cut: float = 3.1, back: float = 5.4) -> User:
    """Give a user whose session ends at 3.2 s, and who is back at 5.4 s, without messages 3–5."""
    client = Client()
    session = client.open(-1.0)
    user = user_of(client)
    for number in range(3):
        client.arrive(number, number + 0.5)
    user.mark(ending, cut=cut)
    client.end(session, 3.2)
    client.open(back)
    for number in range(6, 10):
        client.arrive(number, number + 0.5)
    return user


def beside(user: User, *, at: str) -> Client:
    """Give the user a second client, at the node where the first came back or at another."""
    user.clients[0].sessions[1].node = "here"
    client = Client()
    client.open(-1.0).node = at
    for number in range(len(user.published)):
        client.arrive(number, number + 0.5)
    user.clients.append(client)
    return client


def test_what_a_killed_node_had_taken_is_between_two_connections() -> None:
    findings = findings_of(told(moved()))
    assert findings.between == {"in socket": 1}  # message 3: published before the cut
    assert findings.lost == 2
    assert findings.told_wrongly == {"delivered to nobody": 2}
    assert findings.strays == 0


@pytest.mark.parametrize("arrived", [True, False])
def test_a_session_that_no_fault_concerned_excuses_nothing(arrived: bool) -> None:
    user = moved(Ending.NONE)
    if arrived:
        connected(user)
        user.clients[0].arrivals.sort(key=lambda arrival: arrival.number)
    findings = findings_of(told(user))
    assert (findings.lost, findings.between.total()) == (0 if arrived else 3, 0)
    assert findings.strays == 1
    assert findings.examples["connections that ended"] == ["alice at None"]


def test_what_was_told_long_before_the_cut_must_have_arrived() -> None:
    user = moved()
    user.clients[0].arrivals = user.clients[0].arrivals[1:]
    findings = findings_of(told(user))
    assert (findings.lost, findings.between.total()) == (3, 1)


def test_what_was_told_long_after_the_cut_must_have_arrived() -> None:
    user = told(moved())
    user.told[3] = [Told("delivered", 4.3)]
    findings = findings_of(user)
    assert (findings.lost, findings.between.total()) == (3, 0)


def test_what_a_client_leaves_behind_is_between_for_a_second() -> None:
    user = told(moved(Ending.LEFT, cut=math.inf))
    user.told[4] = [Told("delivered", 4.1)]  # before its node has seen the end
    findings = findings_of(user)
    assert (findings.lost, findings.between.total()) == (1, 2)
    user.told[4] = [Told("delivered", 4.3)]
    findings = findings_of(user)
    assert (findings.lost, findings.between.total()) == (2, 1)


def test_a_node_that_drains_delivers_all_that_it_tells_so() -> None:
    findings = findings_of(told(moved(Ending.DRAINED, cut=math.inf)))
    assert (findings.lost, findings.between.total()) == (3, 0)
    assert findings.told_wrongly == {"delivered to nobody": 3}


def test_between_a_drains_goodbye_and_the_next_connection_a_user_is_offline() -> None:
    offline = {f"m{number}": "offline" for number in (3, 4, 5)}
    findings = findings_of(told(moved(Ending.DRAINED, cut=math.inf), **offline))
    assert (findings.lost, findings.between.total()) == (0, 3)
    assert not findings.told_wrongly
    early = findings_of(told(moved(Ending.DRAINED, cut=math.inf), m1="offline", **offline))
    assert early.told_wrongly == {"offline": 1}


def test_a_client_whose_next_connection_is_open_misses_nothing() -> None:
    user = moved(Ending.DRAINED, cut=math.inf, back=2.9)
    findings = findings_of(told(user, m3="offline"))
    assert (findings.lost, findings.between.total()) == (3, 0)
    assert findings.told_wrongly == {"offline": 1, "delivered to nobody": 2}


@pytest.mark.parametrize("kind", ["offline", "failed"])
def test_a_user_who_comes_back_in_time_is_not_offline(kind: str) -> None:
    findings = findings_of(told(moved(), m3=kind, m4=kind, m5=kind))
    assert (findings.lost, findings.between.total()) == (3, 0)
    assert findings.told_wrongly == {kind: 3}
    assert findings.away_seconds == pytest.approx(2.2)


def test_a_client_that_comes_back_to_where_the_user_had_it_already_needs_a_resume() -> None:
    user = moved()
    beside(user, at="here")
    findings = findings_of(told(user))
    assert (findings.lost, findings.between.total()) == (0, 3)


@pytest.mark.parametrize("at", ["elsewhere", None])
def test_a_client_that_comes_back_to_another_node_gets_what_waited(at: str | None) -> None:
    user = moved()
    beside(user, at=at or "").sessions[0].node = at
    findings = findings_of(told(user))
    assert (findings.lost, findings.between.total()) == (2, 1)


def test_once_a_node_was_started_anew_the_users_other_client_is_there_alone() -> None:
    user = moved()
    beside(user, at="elsewhere")
    user.clients[0].sessions[0].gone = 4.1
    findings = findings_of(told(user))
    assert (findings.lost, findings.between) == (0, {"in socket": 1, "beside": 2})


def test_once_a_node_has_said_that_a_client_is_gone_the_client_may_be_offline() -> None:
    user = moved()
    user.clients[0].sessions[0].gone = 4.1
    findings = findings_of(told(user, m3="offline", m4="offline", m5="offline"))
    assert (findings.lost, findings.between.total()) == (1, 2)  # message 3 was told at 3.2
    assert findings.told_wrongly == {"offline": 1}


def test_a_user_who_has_been_back_for_a_second_is_not_offline() -> None:
    user = moved()
    user.clients[0].sessions[0].gone = 4.1
    told(user, m4="offline", m5="offline")
    user.told[5] = [Told("offline", 6.5)]
    assert findings_of(user).told_wrongly == {"offline": 1}


def test_a_user_who_stays_away_is_offline() -> None:
    user = moved(back=9.5)
    user.clients[0].arrivals = user.clients[0].arrivals[:3]
    findings = findings_of(told(user, **{f"m{number}": "offline" for number in range(3, 10)}))
    assert clean(findings)
    assert findings.owed == 3  # of message 2, told within a second of the cut, a resume's


def test_what_nobody_got_was_not_delivered_though_nobody_was_owed_it() -> None:
    user = moved(back=9.5)
    user.clients[0].arrivals = user.clients[0].arrivals[:3]
    findings = findings_of(told(user))
    assert findings.lost == 0
    assert findings.told_wrongly == {"delivered to nobody": 6}  # but for message 3, in the socket
    never_there = findings_of(told(user_of(Client())))
    assert never_there.told_wrongly == {"delivered to nobody": 10}


def test_nothing_fails_for_who_is_not_there() -> None:
    findings = findings_of(told(user_of(Client()), "offline", m4="failed"))
    assert findings.told_wrongly == {"failed": 1}


def test_who_has_no_client_that_is_read_is_judged_by_outcomes_alone() -> None:
    assert clean(findings_of(told(user_of(), m4="failed", m5="offline")))


@pytest.mark.parametrize("resumes", [True, False])
def test_until_the_registry_has_a_session_its_user_may_be_told_as_offline(resumes: bool) -> None:
    client = Client(resumes=resumes)
    client.open(-1.0).registered = 4.5
    user = connected(user_of(client))
    offline = {f"m{number}": "offline" for number in range(5)}
    findings = findings_of(told(user, **offline))
    assert clean(findings)
    assert findings.owed == 10
    client.sessions[0].registered = 3.5
    assert findings_of(user).told_wrongly == {"offline": 1}
    client.arrivals = client.arrivals[5:]
    assert findings_of(user).lost == 5


def test_a_session_that_outlives_the_fault_is_judged_as_any_other() -> None:
    client, other = Client(), Client()
    sessions = [client.open(-1.0), other.open(-1.0)]
    user = user_of(client, other)
    assert user.mark(Ending.CUT, cut=3.1, gone=4.0) == sessions
    client.end(sessions[0], 3.2)
    assert spare(sessions) == 1
    assert [session.ending for session in sessions] == [Ending.CUT, Ending.NONE]
    assert (sessions[1].cut, sessions[1].gone) == (math.inf, math.inf)


def test_a_user_who_was_still_there_was_not_offline_though_the_user_never_comes_back() -> None:
    user = connected(user_of(Client()), without=4)
    (session,) = user.mark(Ending.LEFT, gone=9.9)
    user.clients[0].end(session, 9.9)
    findings = findings_of(told(user, m4="offline"))
    assert findings.told_wrongly == {"offline": 1}
    assert findings.lost == 1


def test_who_was_never_there_is_owed_nothing_and_who_stays_away_is_never_back() -> None:
    user = user_of(Client())
    assert clean(findings_of(told(user, "offline")))
    assert findings_of(user).never_back == 1
    assert user.clients[0].standing(1.0, None, back_seconds=6.0) is Standing.ABSENT


def resumed(user: User, *, after: int = 2) -> User:
    """Let the only client of a user resume, `after` the message that it had at its request."""
    (client,) = user.clients
    client.resumes = True
    client.sessions[1].after = after
    return user


@pytest.mark.parametrize("kind", ["delivered", "offline"])
def test_a_client_that_resumes_is_owed_what_falls_between_its_connections(kind: str) -> None:
    user = told(resumed(moved()), m3=kind)
    user.clients[0].sessions[0].gone = 3.15  # so that it may be told as offline
    findings = findings_of(user)
    assert (findings.lost, findings.between.total(), findings.owed) == (3, 0, 10)
    for number in (3, 4, 5):
        user.clients[0].arrivals.insert(number, Arrival(number, 5.5, user.clients[0].sessions[1]))
    assert clean(findings_of(user))


def test_a_client_that_resumes_is_owed_what_its_users_other_client_got() -> None:
    user = resumed(moved())
    beside(user, at="here")
    assert findings_of(told(user)).lost == 3


def test_a_client_that_resumes_late_or_on_a_node_without_redis_is_owed_everything() -> None:
    user = told(resumed(moved(back=9.95)), m9="offline")
    user.clients[0].arrivals = user.clients[0].arrivals[:3]
    user.clients[0].sessions[1].registered = 12.0
    assert findings_of(user).lost == 7


def test_what_came_before_the_cursor_is_a_repeat() -> None:
    user = told(resumed(moved()))
    client = user.clients[0]
    client.arrivals.insert(3, Arrival(2, 5.5, client.sessions[1]))
    assert findings_of(user).repeated == 1
    client.sessions[1].after = 1  # asked for before the first brought it: both overlap
    assert findings_of(user).repeated == 0


def test_a_gap_is_counted_and_so_is_what_is_missing_in_front_of_it() -> None:
    user = told(resumed(moved()))
    user.clients[0].gaps.append(4.5)
    findings = findings_of(user)
    assert (findings.gaps, findings.behind_gaps, findings.lost) == (1, 2, 1)
    assert findings.examples["gaps told"] == ["alice at 4.5"]


def test_a_client_that_resumes_is_owed_nothing_before_its_first_session() -> None:
    client = Client(resumes=True)
    client.open(4.5)
    user = user_of(client)
    for number in range(5, 10):
        client.arrive(number, number + 0.5)
    findings = findings_of(told(user, **{f"m{number}": "offline" for number in range(5)}))
    assert clean(findings)
    assert findings.owed == 5
    never_there = findings_of(told(user_of(Client(resumes=True)), "offline"))
    assert clean(never_there)
    assert never_there.owed == 0


def test_the_newest_message_is_the_furthest_and_a_copy_is_no_news() -> None:
    client = Client()
    client.open(-1.0)
    assert client.newest == -1
    assert client.arrive(4, 1.0)
    assert client.arrive(3, 1.1)
    assert not client.arrive(4, 1.2)
    assert client.newest == 4


def test_latencies_are_those_of_first_copies_in_the_period() -> None:
    user = connected(user_of(Client()))
    user.clients[0].arrive(5, 99.0)
    assert latencies([user], since=3.0, until=6.0) == [0.5, 0.5, 0.5]
