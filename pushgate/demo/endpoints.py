"""The endpoints under `/demo/`, which the demo page calls."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Final, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gateway import metrics as gateway_metrics
from gateway.connections.closes import CLOSES
from processor import metrics as processor_metrics
from processor.outcomes.outcome import Kind
from processor.reading.kafka import KafkaError
from pushgate.demo.reports import News, Reports
from pushgate.publish import Publisher
from pushgate.settings import DevSettings
from pushgate.token import mint
from pushgate.users import Connections, Users
from registry.directory import RegistryUnavailable
from registry.message import URGENCIES, valid_device, valid_user

TOKEN_SECONDS: Final = 3_600
#: Enough for the largest payload with every byte escaped in JSON.
MAX_BODY_BYTES: Final = 512 * 1024
#: Records of one request.
MAX_RECORDS: Final = 1_000
#: Users whose connections one request asks for.
MAX_USERS: Final = 20

HEADERS: Final = {
    # `ws:`, because not every browser counts WebSockets to the own host among 'self'.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self' ws:; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class TokenRequest(msgspec.Struct):
    """The body of `POST /demo/token`."""

    user: str
    device: str | None = None


class SendRequest(msgspec.Struct):
    """The body of `POST /demo/send`: a record for each of the ids.

    `headers` are the headers of all the Kafka records, beside `push-id`.
    """

    user: str
    payload: str
    ids: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MAX_RECORDS)]
    headers: dict[str, str] = {}


class _State(msgspec.Struct):
    users: dict[str, Connections]
    registry_error: str | None
    reports: News | None  # None where no outcomes topic is set
    outcomes: dict[str, float]
    connections: dict[str, float]  # of all users, by transport


class Endpoints:
    """What the page asks for, of Kafka, of the nodes, and of this process."""

    def __init__(
        self,
        settings: DevSettings,
        *,
        publisher: Publisher,
        users: Users,
        reports: Reports | None,
    ) -> None:
        self._settings = settings
        self._publisher = publisher
        self._users = users
        self._reports = reports

    async def about(self, request: Request) -> Response:  # noqa: ARG002
        """`GET /demo/about`: what does not change while the process runs."""
        return _json(
            {
                "kafka": self._settings.kafka_bootstrap,
                "topic": self._settings.topics[0],
                "outcomes_topic": self._settings.outcomes_topic,
                "outcomes": [kind.value for kind in Kind],
                "urgencies": sorted(URGENCIES),
                "closes": {close.reason: close.code for close in CLOSES},
            }
        )

    async def token(self, request: Request) -> Response:
        """`POST /demo/token` {user, device?} → {token}, valid for an hour."""
        body = await _body(request, TokenRequest)
        _check_user(body.user)
        if body.device is not None and not valid_device(body.device):
            raise HTTPException(400, "a device is 1–128 bytes without control characters")
        secret = self._settings.jwt_secret.get_secret_value()
        return _json(
            {"token": mint(body.user, secret, ttl_seconds=TOKEN_SECONDS, device=body.device)}
        )

    async def send(self, request: Request) -> Response:
        """`POST /demo/send` {user, payload, ids, headers?} → {coordinates}, once Kafka has all.

        Only the user is checked here: the processor's verdict on bad records is part of the
        demo page.
        """
        body = await _body(request, SendRequest)
        _check_user(body.user)
        payload = body.payload.encode()
        try:
            # Called in order, so published in order.
            coordinates = await asyncio.gather(
                *(
                    self._publisher.publish(
                        body.user, payload, {**body.headers, "push-id": message_id}
                    )
                    for message_id in body.ids
                )
            )
        except KafkaError as error:
            raise HTTPException(503, f"Kafka: {error}") from error
        return _json({"coordinates": coordinates})

    async def state(self, request: Request) -> Response:
        """`GET /demo/state?user=U&user=V&after=N`: connections of users, and reports since N."""
        users = list(dict.fromkeys(request.query_params.getlist("user")))
        if len(users) > MAX_USERS:
            raise HTTPException(400, f"at most {MAX_USERS} users")
        for user in users:
            _check_user(user)
        connections, registry_error = await self._connections_of(users)
        return _json(
            _State(
                connections,
                registry_error,
                None if self._reports is None else self._reports.since(_number(request)),
                _values(processor_metrics.OUTCOMES, "outcome"),
                _values(gateway_metrics.CONNECTIONS, "transport"),
            )
        )

    async def disconnect(self, request: Request) -> Response:
        """`DELETE /demo/connections?user=U&device=D&id=I&code=C` → {closed, errors}."""
        query = request.query_params
        user = query.get("user", "")
        _check_user(user)
        selection = {name: query[name] for name in ("device", "id", "code") if name in query}
        try:
            return _json(await self._users.disconnect(user, selection))
        except RegistryUnavailable as error:
            raise HTTPException(503, str(error)) from error

    async def _connections_of(self, users: list[str]) -> tuple[dict[str, Connections], str | None]:
        try:
            found = await asyncio.gather(*map(self._users.connections_of, users))
        except RegistryUnavailable as error:
            return {}, str(error)
        return dict(zip(users, found, strict=True)), None


def _values(metric: Any, label: str) -> dict[str, float]:
    """Return a metric's values by `label`, summed over all other labels."""
    values: dict[str, float] = {}
    for family in metric.collect():
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                name = sample.labels[label]
                values[name] = values.get(name, 0) + sample.value
    return values


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json", headers=HEADERS)


def _number(request: Request) -> int:
    text = request.query_params.get("after", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise HTTPException(400, "after is a number")
    return int(text)


_Body = TypeVar("_Body", bound=msgspec.Struct)


async def _body(request: Request, shape: type[_Body]) -> _Body:
    raw = bytearray()
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY_BYTES:
            raise HTTPException(413, f"at most {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(raw, type=shape)
    except msgspec.DecodeError as error:
        raise HTTPException(400, f"the body is not what was expected: {error}") from error


def _check_user(user: str) -> None:
    if not valid_user(user):
        raise HTTPException(400, "a user id is 1–256 bytes without control characters")
