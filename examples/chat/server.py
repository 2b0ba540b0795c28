"""A chat room: lines come here by POST, and go to every member through Kafka.

In a folder where `pushgate dev` runs: `python examples/chat/server.py`, then open
http://127.0.0.1:9001/?user=alice and http://127.0.0.1:9001/?user=bob
"""

import json
import os
import time
from collections import deque
from pathlib import Path

import jwt
import uvicorn
from confluent_kafka import Producer
from dotenv import dotenv_values
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

DEV = dotenv_values(".pushgate/dev.env")  # secret and addresses, written by `pushgate dev`
kafka = Producer(
    # As Java's clients choose partitions: a user's messages are in order whoever publishes them.
    {"bootstrap.servers": DEV["PUSHGATE_KAFKA_BOOTSTRAP"], "partitioner": "murmur2_random"}
)
PAGE = Path(__file__).with_name("page.html").read_text().replace("GATEWAY", DEV["PUSHGATE_URL"])
SECRET = DEV["PUSHGATE_JWT_SECRET"]
members: set[str] = set()
history: deque = deque(maxlen=50)  # for newcomers, and for a page that was away for too long


async def page(request):
    return HTMLResponse(PAGE)


async def enter(request):
    """Let a user in; a real server asks for a password here."""
    user = request.query_params["user"]
    members.add(user)
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 3600}, SECRET)
    return JSONResponse({"token": token, "history": [*history]})


async def say(request):
    """Publish a line for each member: the token tells who speaks."""
    token = request.headers["authorization"].removeprefix("Bearer ")
    user = jwt.decode(token, SECRET, algorithms=["HS256"])["sub"]
    line = {"from": user, "text": (await request.body()).decode()[:500]}
    history.append(line)
    for member in members:
        kafka.produce("push", key=member, value=json.dumps(line), headers={"push-type": "chat"})
    kafka.poll(0)  # takes Kafka's answers, which would pile up
    return Response(status_code=202)


routes = [Route("/", page), Route("/enter", enter), Route("/say", say, methods=["POST"])]
uvicorn.run(Starlette(routes=routes), port=int(os.environ.get("PORT", "9001")))
