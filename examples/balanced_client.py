"""Ten calls at a time to the workers behind "apps", shared out among them.

python balanced_client.py
"""

import asyncio
import os

import httpx

from balancer import BalancedTransport, Settings


async def main() -> None:
    transport = BalancedTransport(Settings.load(os.environ))  # or BalancedTransport("apps", upstream_port=8080)
    async with httpx.AsyncClient(transport=transport, base_url="http://apps") as client:
        for response in await asyncio.gather(*(client.get("/") for _ in range(10))):
            record = response.extensions["balancer"]
            print(response.status_code, record.member, response.text.strip())


asyncio.run(main())
