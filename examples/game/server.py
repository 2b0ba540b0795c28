"""Noughts and crosses: moves come here by POST, are checked, and go to both players in order.

In a folder where `pushgate dev` runs: `python examples/game/server.py`, then open
http://127.0.0.1:9004/?user=alice and http://127.0.0.1:9004/?user=bob
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
players: list[str] = []  # the first plays X, the second O
moves: list[int] = []  # fields 0–8, by both in turn


async def page(request):
    return HTMLResponse(PAGE)


async def join(request):
    user = request.query_params["user"]
    if user not in players and len(players) < 2:
        players.append(user)
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 3600}, SECRET)
    return JSONResponse({"token": token, "moves": moves})


async def move(request):
    """Take a move whose turn it is. A user's messages arrive in the order of their publication."""
    token = request.headers["authorization"].removeprefix("Bearer ")
    user = jwt.decode(token, SECRET, algorithms=["HS256"])["sub"]
    field = int(await request.body())
    is_users_turn = len(players) == 2 and user == players[len(moves) % 2]
    if not is_users_turn or field in moves or field not in range(9):
        return Response("not now", status_code=409)
    moves.append(field)
    value = json.dumps({"number": len(moves), "field": field})
    for player in players:
        kafka.produce("push", key=player, value=value, headers={"push-type": "move"})
    kafka.poll(0)  # takes Kafka's answers, which would pile up
    return Response(status_code=202)


routes = [Route("/", page), Route("/join", join), Route("/move", move, methods=["POST"])]
uvicorn.run(Starlette(routes=routes), port=int(os.environ.get("PORT", "9004")))
