"""`GET /pushgate.js`: served compressed and cached, by the rules of HTTP."""

import gzip
from pathlib import Path
from typing import Final

import pytest

from tests.support.clients import request
from tests.support.processes import GatewayProcess

pytestmark = pytest.mark.anyio

SCRIPT: Final = (Path(__file__).parents[2] / "gateway/pushgate.js").read_bytes()


@pytest.mark.parametrize(
    ("accept_encoding", "is_compressed"),
    [
        ("gzip, deflate, br, zstd", True),
        ("br;q=1.0, GZIP ;q=0.5", True),
        ("*", True),
        ("", False),
        ("identity", False),
        ("br, deflate", False),
        ("gzip;q=0", False),
        ("gzip; q=0.000, *", False),
        ("*;q=0", False),
    ],
)
async def test_the_script_is_compressed_for_clients_that_say_so(
    gateway: GatewayProcess, accept_encoding: str, is_compressed: bool
) -> None:
    fields = {"Accept-Encoding": accept_encoding}
    answer = await request(gateway.port, "GET", "/pushgate.js", fields)
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/javascript; charset=utf-8"
    assert answer.headers.get("content-encoding") == ("gzip" if is_compressed else None)
    assert (gzip.decompress(answer.body) if is_compressed else answer.body) == SCRIPT
    assert answer.headers["vary"] == "accept-encoding"
    assert answer.headers["cache-control"] == "public, max-age=600"
    assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_client_that_has_the_script_gets_no_second_copy(
    gateway: GatewayProcess, encoding: str
) -> None:
    fields = {"Accept-Encoding": encoding}
    tag = (await request(gateway.port, "GET", "/pushgate.js", fields)).headers["etag"]
    for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        asked = {**fields, "If-None-Match": condition}
        answer = await request(gateway.port, "GET", "/pushgate.js", asked)
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"] == "public, max-age=600"
    asked = {**fields, "If-None-Match": '"other"'}
    assert (await request(gateway.port, "GET", "/pushgate.js", asked)).status == 200


async def test_each_encoding_has_a_tag_of_its_own(gateway: GatewayProcess) -> None:
    tags = {
        (await request(gateway.port, "GET", "/pushgate.js", {"Accept-Encoding": encoding})).headers[
            "etag"
        ]
        for encoding in ("gzip", "identity")
    }
    assert len(tags) == 2


async def test_the_head_of_the_script_comes_without_it(gateway: GatewayProcess) -> None:
    answer = await request(gateway.port, "HEAD", "/pushgate.js", {"Accept-Encoding": "identity"})
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["content-length"] == str(len(SCRIPT))
