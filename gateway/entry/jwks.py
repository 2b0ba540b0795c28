"""The public keys that verify tokens: a JWK Set (RFC 7517), read at regular intervals.

The gateway's only file that imports httpx. No token ever reaches this file: callers ask for a key
by algorithm and key id.
"""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import jwt
import msgspec
import structlog

from gateway.errors import GatewayError

if TYPE_CHECKING:
    import httpx

#: How long one reading of the key set may take, connecting included.
READ_SECONDS: Final = 5.0
#: The longest document that is read.
MAX_SET_BYTES: Final = 1024 * 1024
#: Keys of a set that are used. An issuer has a handful of keys; to import thousands would hold up
#: every connection of the node meanwhile.
MAX_KEYS: Final = 100
#: The least and the most bits of an RSA modulus. RFC 7518 §3.3 asks for 2,048 at least; with a
#: modulus far above 8,192 bits, to verify one signature takes too long.
RSA_BITS: Final = (2_048, 8_192)
#: Tokens with unknown keys cause one reading of the key set in this time at most: the names of
#: unknown keys may be made up.
RENEW_SECONDS: Final = 5.0
#: Waits after the first, second and further failed readings in a row.
_RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
#: The algorithm for keys of a type and curve (RFC 7518 §3.1). The type `oct` is left out: a secret
#: in a public document is no secret.
_ALGORITHMS: Final = {("RSA", None): "RS256", ("EC", "P-256"): "ES256"}

log = structlog.get_logger("gateway.jwks")
#: Keys by algorithm and key id. None stands for the id of a key without id, and for the id of an
#: algorithm's only key.
_Keys = Mapping[tuple[str, str | None], jwt.PyJWK]


class Unreadable(GatewayError):
    """The key set can't be read now; the text gives the reason."""


class Source(Protocol):
    """A place from which the document of a key set is read."""

    async def read(self) -> bytes:
        """Return the document, of at most `MAX_SET_BYTES`.

        Raises:
            Unreadable: the document can't be read, or is longer.
        """

    async def close(self) -> None:
        """Release the resources of the source. Harmless when repeated."""


class UrlSource:
    """A key set behind a URL."""

    def __init__(self, url: str) -> None:
        import httpx  # noqa: PLC0415 - some 20 ms of a start, for nodes whose keys have a URL

        self._url = url
        self._ok = httpx.codes.OK
        self._errors = (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError)
        self._client = httpx.AsyncClient(
            # The CA certificates of the system, not certifi's: the CA of a private issuer is
            # installed in the system.
            verify=ssl.create_default_context(),
            timeout=READ_SECONDS,
            # Readings are minutes apart: a connection kept for the next reading would be stale.
            limits=httpx.Limits(max_keepalive_connections=0),
            # The document is never decompressed: a compressed document could grow to any size.
            headers={"accept": "application/json", "accept-encoding": "identity"},
            # The URL alone says whose signatures count: no proxy and no redirect may change that.
            trust_env=False,
            follow_redirects=False,
        )

    async def read(self) -> bytes:
        """GET the document; only a complete answer with status 200 counts."""
        try:
            async with self._client.stream("GET", self._url) as response:
                if response.status_code != self._ok:
                    raise Unreadable(f"status {response.status_code}")
                return await _read_body(response)
        except self._errors as error:
            # ValueError: an invalid host name (IDNA), which httpx finds out on the request only.
            raise Unreadable(f"{type(error).__name__}: no whole answer") from error

    async def close(self) -> None:
        """Close the client."""
        await self._client.aclose()


class FileSource:
    """A key set in a file, which may be replaced at any time."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    async def read(self) -> bytes:
        """Read the file in a thread: the file may lie on a network, and block the event loop."""
        try:
            document = await asyncio.to_thread(self._start)
        except OSError as error:
            raise Unreadable(f"{type(error).__name__}: the file can't be read") from error
        _check_size(document)
        return document

    async def close(self) -> None:
        """Do nothing: no resource is held between readings."""

    def _start(self) -> bytes:
        """Return the start of the file, with a byte too many where the file is too large."""
        with self._path.open("rb") as file:
            return file.read(MAX_SET_BYTES + 1)


class KeyRing:
    """The keys that verify tokens now. Made inside the running loop; `run` keeps the keys fresh.

    Every reading of the key set replaces all keys, so a key that the issuer has taken out verifies
    nothing any more. While the document can't be read, or is no key set, the known keys stay.
    """

    def __init__(
        self,
        source: Source,
        *,
        refresh_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read `source` every `refresh_seconds`; `clock` (seconds) is for the limit of `renew`."""
        #: Set once the ring has a key.
        self.loaded = asyncio.Event()
        self._source = source
        self._refresh_seconds = refresh_seconds
        self._clock = clock
        self._keys: _Keys = {}
        self._reading: asyncio.Task[bool] | None = None
        self._renewed_at = -math.inf
        self._failing = False
        self._skipped: list[str] = []
        self._closed = False

    @classmethod
    def of(
        cls,
        algorithms: Collection[str],
        *,
        url: str | None,
        file: str | None,
        refresh_seconds: float,
    ) -> Self | None:
        """Return the ring of the key set behind `url` or in `file`.

        None where HS256 is the only algorithm, or where neither `url` nor `file` is set.
        """
        if set(algorithms) <= {"HS256"}:
            return None
        if url is not None:
            return cls(UrlSource(url), refresh_seconds=refresh_seconds)
        if file is not None:
            return cls(FileSource(file), refresh_seconds=refresh_seconds)
        return None

    def find(self, algorithm: str, kid: str | None) -> jwt.PyJWK | None:
        """Return the key for `algorithm` with the id `kid`; None where the ring has no such key.

        For a token without `kid`, return the only key for `algorithm`.
        """
        return self._keys.get((algorithm, kid))

    async def renew(self) -> bool:
        """Read the key set because a key is missing.

        Returns False where the reading failed, or where the last `renew` was less than
        `RENEW_SECONDS` ago. Concurrent callers wait for the same reading, `READ_SECONDS` at most.
        """
        if self._reading is None:
            now = self._clock()
            if now - self._renewed_at < RENEW_SECONDS:
                return False
            self._renewed_at = now
        return await self._read()

    async def run(self) -> None:
        """Read the key set now and every `refresh_seconds`, until cancelled.

        After a failure, or a set without a usable key, the next reading comes sooner.
        """
        failures = 0
        while True:
            if await self._read() and self._keys:
                failures = 0
                await asyncio.sleep(self._refresh_seconds)
            else:
                delay = _RETRY_SECONDS[min(failures, len(_RETRY_SECONDS) - 1)]
                failures += 1
                await asyncio.sleep(min(delay, self._refresh_seconds))

    async def close(self) -> None:
        """Cancel a reading that is under way, and close the source. Harmless when repeated."""
        self._closed = True
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait((self._reading,))
        await self._source.close()

    async def _read(self) -> bool:
        """Read the key set, or wait for the reading that is under way.

        A reading is a task of its own, so that it outlives callers that are cancelled.
        """
        if self._closed:
            return False
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_once())
        reading = self._reading
        await asyncio.wait((reading,))
        return not reading.cancelled() and reading.result()

    async def _read_once(self) -> bool:
        try:
            async with asyncio.timeout(READ_SECONDS):
                document = await self._source.read()
            keys, skipped = _usable(document)
        except TimeoutError:
            return self._failed(f"no whole answer within {READ_SECONDS:g} s")
        except Unreadable as error:
            return self._failed(str(error))
        finally:
            self._reading = None
        self._take(keys, skipped)
        return True

    def _failed(self, error: str) -> bool:
        """Log the first of several failed readings in a row; return False."""
        if not self._failing:
            self._failing = True
            log.error("can't read the key set; known keys stay, trying on", error=error)
        return False

    def _take(self, keys: _Keys, skipped: list[str]) -> None:
        if skipped != self._skipped:
            self._skipped = skipped
            log.warning("keys of the key set that verify no token", skipped=skipped)
        if keys.keys() != self._keys.keys() or self._failing:
            log.info("key set is read", keys=len(set(keys.values())))
        self._failing = False
        self._keys = keys
        if keys:
            self.loaded.set()


class _Set(msgspec.Struct):
    keys: list[Any]


class _Skipped(GatewayError):
    """A key of the set is not usable; the text gives the reason."""


async def _read_body(response: httpx.Response) -> bytes:
    document = bytearray()
    async for chunk in response.aiter_raw():
        document += chunk
        _check_size(document)
    return bytes(document)


def _check_size(document: bytes | bytearray) -> None:
    if len(document) > MAX_SET_BYTES:
        raise Unreadable(f"over {MAX_SET_BYTES} bytes")


def _usable(document: bytes) -> tuple[_Keys, list[str]]:
    """Return the usable keys of a document, and the reasons why the remaining keys are skipped.

    Raises:
        Unreadable: the document is no JWK Set.
    """
    try:
        entries = msgspec.json.decode(document, type=_Set).keys
    except (ValueError, RecursionError) as error:
        raise Unreadable("that is no JWK Set") from error
    keys: dict[tuple[str, str | None], jwt.PyJWK] = {}
    skipped: list[str] = []
    for number, entry in enumerate(entries[:MAX_KEYS]):
        try:
            key = _key(entry)
            if (key.algorithm_name, key.key_id) in keys:
                raise _Skipped("its id is another key's too")
            keys[key.algorithm_name, key.key_id] = key
        except _Skipped as reason:
            skipped.append(f"key {number}: {reason}")
    if len(entries) > MAX_KEYS:
        skipped.append(f"all behind the first {MAX_KEYS}")
    for algorithm in _ALGORITHMS.values():
        algorithm_keys = [key for (name, _), key in keys.items() if name == algorithm]
        if len(algorithm_keys) == 1:  # a token need not name its key where there is no choice
            keys[algorithm, None] = algorithm_keys[0]
    return keys, skipped


def _key(entry: object) -> jwt.PyJWK:
    """Return an entry of the set as a key that verifies tokens.

    The members by which an entry restricts the use of its key are obeyed (RFC 7517 §4).

    Raises:
        _Skipped: the key is not usable.
    """
    if not isinstance(entry, dict):
        raise _Skipped("no object")
    kty, crv, kid = entry.get("kty"), entry.get("crv"), entry.get("kid")
    if not (isinstance(kty, str) and isinstance(crv, str | None) and isinstance(kid, str | None)):
        raise _Skipped("kty, crv or kid is no string")
    algorithm = _ALGORITHMS.get((kty, crv))
    if algorithm is None:
        raise _Skipped("neither RSA nor EC on P-256")
    if entry.get("alg", algorithm) != algorithm:
        raise _Skipped(f"its alg is not {algorithm}")
    if entry.get("use", "sig") != "sig":
        raise _Skipped("its use is not sig")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise _Skipped("its key_ops have no verify")
    if "d" in entry:
        raise _Skipped("a private key: whoever can read the set can sign")
    return _built(entry, algorithm)


def _built(entry: dict[str, Any], algorithm: str) -> jwt.PyJWK:
    try:
        key = jwt.PyJWK(entry, algorithm)
    except Exception as error:
        # Broad: a library may raise any error for odd numbers, and one bad key must not cost the
        # good keys of the set. The error's text is left out, because it would repeat the key.
        raise _Skipped(type(error).__name__) from None
    if algorithm == "RS256" and not RSA_BITS[0] <= key.key.key_size <= RSA_BITS[1]:
        raise _Skipped(f"RSA of {key.key.key_size} bits")
    return key
