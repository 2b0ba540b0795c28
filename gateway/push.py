"""Pushing into a gateway: the internal listener. batch → hub → results."""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import metrics
from gateway.delivery import Delivery
from gateway.hub import Addressed, Refusal
from gateway.node import GatewayNode
from gateway.repeats import Name, Repeats
from gateway.wires.takeover import ANSWER
from registry.message import (
    BATCH_MEDIA_TYPE,
    EPOCH_HEADER,
    MAX_BATCH_BYTES,
    MAX_BATCH_MESSAGES,
    NODE_HEADER,
    valid_device,
    valid_id,
    valid_type,
    valid_user,
)


class Entry(msgspec.Struct):
    """One element of a batch. Unknown fields are ignored."""

    user: str | list[str]
    data: Any
    encoding: str | None = None
    id: str | None = None
    type: str | None = None
    device: str | None = None


class Invalid(Exception):
    """An element that can't be delivered to anyone; `error` is its result."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


Result = int | dict[str, str]
#: Entries whose messages are looked up and encoded before the first of them is written: as many as
#: pay, and no more, since all of that is memory which a batch leaves behind as the process's peak.
_AT_ONCE: Final = 200


class _Codec:
    """One encoding of the batch: JSON for people, MessagePack between our own."""

    def __init__(self, module: Any, media_type: str) -> None:
        self.media_type = media_type.encode("ascii")
        self.encode: Callable[[object], bytes] = module.encode
        self._batch = module.Decoder(list[Entry])
        self._raw = module.Decoder(list[msgspec.Raw])
        self._entry = module.Decoder(Entry)

    def decode(self, body: bytes) -> list[Entry | None]:
        """Return a batch's elements, None for each that is not of the right shape.

        Raises:
            msgspec.DecodeError: the body is no list at all.
        """
        try:
            try:
                return self._batch.decode(body)  # type: ignore[no-any-return]
            except (msgspec.ValidationError, UnicodeDecodeError):
                return [self._entry_or_none(raw) for raw in self._raw.decode(body)]
        except RecursionError as error:
            raise msgspec.DecodeError("nested too deeply") from error

    def _entry_or_none(self, raw: msgspec.Raw) -> Entry | None:
        try:
            return self._entry.decode(raw)  # type: ignore[no-any-return]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


_NODE_HEADER: Final = NODE_HEADER.encode("ascii")
_EPOCH_HEADER: Final = EPOCH_HEADER.encode("ascii")
_JSON: Final = _Codec(msgspec.json, "application/json")
_PACKED: Final = _Codec(msgspec.msgpack, BATCH_MEDIA_TYPE)


class PushEndpoints:
    """The internal listener's routes that push."""

    def __init__(self, node: GatewayNode, repeats: Repeats, *, max_payload_bytes: int) -> None:
        self._node = node
        self._hub = node.hub
        self._repeats = repeats
        self._max_payload_bytes = max_payload_bytes
        self._numbers = count(1)

    async def batch(self, scope: Scope, receive: Receive) -> None:
        """`POST /push`: at most 1,000 messages and 4 MiB, a result for each.

        Raises:
            HTTPException: it is refused as a whole.
        """
        headers = dict(scope["headers"])
        self._refuse_if_meant_for_another(headers)
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        codec = _PACKED if media_type == _PACKED.media_type else _JSON
        body = await _body(headers, receive, limit=MAX_BATCH_BYTES)
        try:
            entries = codec.decode(body)
        except msgspec.DecodeError as error:
            raise HTTPException(400, f"the body is no list of messages: {error}") from error
        if len(entries) > MAX_BATCH_MESSAGES:
            raise HTTPException(413, f"{len(entries)} messages; at most {MAX_BATCH_MESSAGES}")
        metrics.BATCH.observe(len(entries))
        results: list[Result | list[Result]] = []
        for start in range(0, len(entries), _AT_ONCE):
            results += self._push(entries[start : start + _AT_ONCE])
        await scope["extensions"][ANSWER](codec.media_type, codec.encode({"results": results}))

    async def one(self, request: Request) -> Response:
        """`POST /push/{user}`: the body is the payload; push-id, push-type, push-device apply."""
        headers = request.headers
        raw_headers = dict(request.scope["headers"])
        self._refuse_if_meant_for_another(raw_headers)
        user = user_in_path(request, "/push/")
        entry = Entry(
            user,
            await _body(raw_headers, request.receive, limit=self._max_payload_bytes),
            None,
            headers.get("push-id"),
            headers.get("push-type"),
            headers.get("push-device"),
        )
        (result,) = self._push([entry])
        if isinstance(result, int):
            status, text = (200, f"delivered to {result}") if result else (404, "not on this node")
            return PlainTextResponse(f"{text}\n", status)
        assert isinstance(result, dict)  # noqa: S101 - one user, one result
        error = result["error"]
        return PlainTextResponse(f"{error}\n", _STATUS[error])

    async def here(self, request: Request) -> Response:
        """`GET /push/{user}`: whether the user is on this node."""
        here = user_in_path(request, "/push/") in self._hub
        return PlainTextResponse("here\n" if here else "not on this node\n", 200 if here else 404)

    def _push(self, entries: Sequence[Entry | None]) -> list[Result | list[Result]]:
        batch: list[Addressed] = []
        names: dict[int, Name] = {}
        errors = [self._address(entry, batch, names) for entry in entries]
        results_of = self._repeats.deliver(batch, names, self._hub.deliver)
        told = [
            taken if taken.__class__ is int and taken else _told(taken, user)
            for taken, (_, user, _) in zip(results_of, batch, strict=True)
        ]
        rest = iter(told)
        results = [
            _shaped(entry, rest) if error is None else _refused(entry, error)
            for entry, error in zip(entries, errors, strict=True)
        ]
        _count(results)
        return results

    def _address(
        self, entry: Entry | None, batch: list[Addressed], names: dict[int, Name]
    ) -> str | None:
        """Add an entry to the batch, once for each of its users; or return what is wrong.

        What comes with an id may be a repeat: `names` gets its name, by position in the batch.
        """
        if entry is None:
            return "invalid"
        try:
            delivery = self._delivery(entry)
        except Invalid as invalid:
            return invalid.error
        user, device, given_id = entry.user, entry.device, entry.id
        if isinstance(user, str):
            if given_id is not None:
                names[len(batch)] = (user, given_id, device)
            batch.append((delivery, user, device))
            return None
        if given_id is not None:
            names.update(enumerate(((each, given_id, device) for each in user), len(batch)))
        batch += [(delivery, each, device) for each in user]
        return None

    def _delivery(self, entry: Entry) -> Delivery:
        data = entry.data
        text = data if isinstance(data, str) and entry.encoding is None else None
        payload = _payload(entry)
        if len(payload) > self._max_payload_bytes:
            raise Invalid("too-large")
        if entry.id is not None and not valid_id(entry.id):
            raise Invalid("invalid")
        if entry.type is not None and not valid_type(entry.type):
            raise Invalid("invalid")
        if entry.device is not None and not valid_device(entry.device):
            raise Invalid("invalid")
        message_id = entry.id or self._new_id()
        return Delivery(payload, message_id=message_id, event_type=entry.type, text=text)

    def _new_id(self) -> str:
        return f"{self._node.identity.epoch}-{next(self._numbers)}"

    def _refuse_if_meant_for_another(self, headers: Mapping[bytes, bytes]) -> None:
        """421 for a batch that names another node or an earlier start of this one."""
        ours = self._node.identity
        for name, own in ((_NODE_HEADER, ours.name), (_EPOCH_HEADER, ours.epoch)):
            given = headers.get(name)
            if given is not None and given != own.encode():
                raise HTTPException(421, f"this is node {ours.name}, epoch {ours.epoch}")


_STATUS: Final = {"invalid": 400, "no-device": 404, "too-large": 413, "overloaded": 503}


def _told(taken: int | Refusal, user: str) -> Result:
    """Return the result of a message that nobody has taken."""
    if isinstance(taken, Refusal):
        return {"error": taken.value}
    return taken if valid_user(user) else {"error": "invalid"}


def _shaped(entry: Entry | None, told: Iterator[Result]) -> Result | list[Result]:
    """Return an entry's result, or the list of them where it has a list of users."""
    assert entry is not None  # noqa: S101 - it was refused
    return next(told) if isinstance(entry.user, str) else list(islice(told, len(entry.user)))


def _refused(entry: Entry | None, error: str) -> Result | list[Result]:
    if entry is None or isinstance(entry.user, str):
        return {"error": error}
    return [{"error": error} for _ in entry.user]


def _count(results: Sequence[Result | list[Result]]) -> None:
    """Count a batch's results at once: a counter takes a lock each time."""
    flat: list[Result] = []
    for result in results:
        flat += result if isinstance(result, list) else (result,)
    not_here = flat.count(0)
    errors = [result["error"] for result in flat if isinstance(result, dict)]
    for error in errors:
        metrics.PUSHED.labels(error).inc()
    _DELIVERED.inc(len(flat) - not_here - len(errors))
    _NOT_HERE.inc(not_here)


_DELIVERED: Final = metrics.PUSHED.labels("delivered")
_NOT_HERE: Final = metrics.PUSHED.labels("not-here")


def _payload(entry: Entry) -> bytes:
    data = entry.data
    if entry.encoding == "base64" and isinstance(data, str):
        try:
            return b64decode(data, validate=True)
        except ValueError as error:
            raise Invalid("invalid") from error
    if entry.encoding is not None:
        raise Invalid("invalid")
    if isinstance(data, bytes):
        return data
    if isinstance(data, str):
        try:
            return data.encode()
        except UnicodeEncodeError as error:  # a lone surrogate
            raise Invalid("invalid") from error
    raise Invalid("invalid")


def user_in_path(request: Request, prefix: str) -> str:
    """Return the user behind `prefix`, percent-decoded once, slashes too.

    The decoded path would not tell the slashes apart.
    """
    raw = request.scope["raw_path"][len(prefix) :]
    try:
        user = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the user in the path is not UTF-8") from error
    if not valid_user(user):
        raise HTTPException(400, "a user id is 1–256 bytes without control characters")
    return user


async def _body(headers: Mapping[bytes, bytes], receive: Receive, *, limit: int) -> bytes:
    """Read a body of at most `limit` bytes; 413 before anything of a larger one is kept."""
    too_large = HTTPException(413, f"at most {limit} bytes")
    if int(headers.get(b"content-length", b"0")) > limit:
        raise too_large
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message["body"])
        size += len(message["body"])
        more = message["more_body"]
        if size > limit:
            raise too_large
    return b"".join(pieces)


class RequireSecret:
    """Lets requests in that carry an internal secret: 401 without one, 403 with a wrong one."""

    def __init__(
        self, app: ASGIApp, *, secrets: Sequence[str], open_paths: Collection[str]
    ) -> None:
        """Guard all paths but `open_paths`; any of `secrets` is a good one."""
        self._app = app
        self._expected = [f"Bearer {secret}".encode() for secret in secrets]
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse."""
        given = dict(scope["headers"]).get(b"authorization")
        if scope["path"] in self._open_paths or (given is not None and self._is_good(given)):
            await self._app(scope, receive, send)
            return
        status = 401 if given is None else 403
        headers = {"www-authenticate": "Bearer"} if given is None else None
        await PlainTextResponse("internal secret required\n", status, headers)(scope, receive, send)

    def _is_good(self, given: bytes) -> bool:
        # All are compared, whichever fits: how long it takes tells nothing of any.
        fits = [hmac.compare_digest(given, expected) for expected in self._expected]
        return any(fits)


def push_routes(endpoints: PushEndpoints) -> list[Route]:
    """Return the routes of this page."""
    return [
        Route("/push", endpoints.batch, methods=["POST"]),
        Route("/push/{user:path}", endpoints.one, methods=["POST"]),
        Route("/push/{user:path}", endpoints.here, methods=["GET"]),
    ]
