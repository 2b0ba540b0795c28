"""An editor for several people: edits that must arrive, and cursors that matter only now.

In a folder where `pushgate dev` runs: `python examples/editor/server.py`, then open
http://127.0.0.1:9005/?user=alice and http://127.0.0.1:9005/?user=bob
"""

import json
import os
import time
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
lines = ["Once upon a time", "", "", ""]  # the document; the last edit of a line counts
editors: set[str] = set()


async def page(request):
    return HTMLResponse(PAGE)


async def enter(request):
    user = request.query_params["user"]
    editors.add(user)
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 3600}, SECRET)
    return JSONResponse({"token": token, "lines": lines})


async def change(request):
    """Pass an edit ({line, text}) or a cursor ({line}) on to the others."""
    token = request.headers["authorization"].removeprefix("Bearer ")
    user = jwt.decode(token, SECRET, algorithms=["HS256"])["sub"]
    form = await request.json()
    # A cursor is for who is connected now (TTL 0), and a newer cursor replaces it.
    headers = {"push-type": "cursor", "push-ttl": "0", "push-collapse-key": user}
    if "text" in form:
        lines[form["line"]] = form["text"]
        headers = {"push-type": "edit"}
    value = json.dumps({**form, "by": user})
    for editor in editors - {user}:
        kafka.produce("push", key=editor, value=value, headers=headers)
    kafka.poll(0)  # takes Kafka's answers, which would pile up
    return Response(status_code=202)


routes = [Route("/", page), Route("/enter", enter), Route("/change", change, methods=["POST"])]
uvicorn.run(Starlette(routes=routes), port=int(os.environ.get("PORT", "9005")))
