"""A stock ticker: twenty prices a second for each user; of a symbol only the newest counts.

In a folder where `pushgate dev` runs: `python examples/ticker/server.py`, then open
http://127.0.0.1:9003/?user=alice
"""

import json
import os
import random
import threading
import time
from pathlib import Path

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
prices = {"ACME": 41.0, "GLOBEX": 120.0, "HOOLI": 77.5, "INITECH": 12.25}
watchers: set[str] = set()


async def page(request):
    return HTMLResponse(PAGE)


async def watch(request):
    user = request.query_params["user"]
    watchers.add(user)
    token = jwt.encode({"sub": user, "exp": int(time.time()) + 3600}, SECRET)
    return JSONResponse({"token": token, "prices": prices})


def trade():
    """Move a price twenty times a second; a newer price replaces a price that is on its way."""
    while True:
        symbol = random.choice([*prices])
        prices[symbol] = round(prices[symbol] * random.uniform(0.995, 1.005), 2)
        headers = {"push-type": "price", "push-collapse-key": symbol, "push-ttl": "5"}
        value = json.dumps({"symbol": symbol, "price": prices[symbol]})
        for user in [*watchers]:
            kafka.produce("push", key=user, value=value, headers=headers)
        kafka.poll(0)  # takes Kafka's answers, which would pile up
        time.sleep(0.05)


threading.Thread(target=trade, daemon=True).start()
routes = [Route("/", page), Route("/watch", watch)]
uvicorn.run(Starlette(routes=routes), port=int(os.environ.get("PORT", "9003")))
