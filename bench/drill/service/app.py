"""A service with as many turns as gunicorn gives it: a request that takes its time keeps one of them."""

import os
import secrets
import time

from flask import Flask, request
from redis import Redis

app = Flask(__name__)
redis = Redis(os.environ["HOST_REDIS"])


@app.route("/", methods=["GET", "PUT"])
def work() -> str:
    if name := request.args.get("name"):
        redis.zadd("recorded", {f"{name} {secrets.token_hex(8)}": 0})
    time.sleep(float(request.args.get("seconds", 0)))
    return f"Hello World I am {os.environ['NAME']}!\n"


@app.get("/healthz")
def healthz() -> str:
    return "ok\n"
