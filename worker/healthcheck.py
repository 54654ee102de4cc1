"""``python -m worker.healthcheck``: exit status 0 if the worker in this container takes requests."""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ.get("PORT") or "80"), timeout=2)
try:
    connection.request("GET", "/healthz")
    sys.exit(connection.getresponse().status != 200)
except OSError as error:
    sys.exit(f"the worker does not answer: {error}")
