"""A news feed: an editor's headlines go to all subscribers of a section, wherever they read.

In a folder where `pushgate dev` runs: `python examples/news/server.py`, then open
http://127.0.0.1:9002/?user=alice&section=sport, and publish a headline:
curl http://127.0.0.1:9002/publish -d section=sport -d headline='It rained, and everybody won'
"""

import os
import time
from collections import defaultdict
from pathlib import Path
from urllib.parse import parse_qs

import jwt
import uvicorn
from confluent_kafka import Producer
from dotenv import dotenv_values
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

DEV = dotenv_values(".pushgate/dev.env")  # secret and addresses, written by `pushgate dev`
SECRET = DEV["PUSHGATE_JWT_SECRET"]
kafka = Producer(
    # As Java's clients choose partitions: a user's messages are in order whoever publishes them.
    {"bootstrap.servers": DEV["PUSHGATE_KAFKA_BOOTSTRAP"], "partitioner": "murmur2_random"}
)
PAGE = Path(__file__).with_name("page.html").read_text().replace("GATEWAY", DEV["PUSHGATE_URL"])
WORTH_READING_SECONDS = 3600  # an older headline is not pushed any more
subscribers: dict[str, set[str]] = defaultdict(set)  # by section


async def page(request):
    return HTMLResponse(PAGE)


async def subscribe(request):
    user, section = request.query_params["user"], request.query_params["section"]
    subscribers[section].add(user)
    claims = {"sub": user, "exp": int(time.time()) + 8 * 3600}
    return JSONResponse({"token": jwt.encode(claims, SECRET)})


async def publish(request):
    """Publish a headline. Readers who are offline find it on the front page, not here."""
    form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
    section, headline = form["section"], form["headline"]
    headers = {"push-type": section, "push-ttl": str(WORTH_READING_SECONDS)}
    for user in subscribers[section]:
        kafka.produce("push", key=user, value=headline, headers=headers)
    kafka.poll(0)  # takes Kafka's answers, which would pile up
    return JSONResponse({"subscribers": len(subscribers[section])}, status_code=202)


routes = [
    Route("/", page),
    Route("/subscribe", subscribe),
    Route("/publish", publish, methods=["POST"]),
]
uvicorn.run(Starlette(routes=routes), port=int(os.environ.get("PORT", "9002")))
