"""A stand-in for Swarm's routing mesh, where the kernel has no IPVS. Runs in a container.

It does what the mesh does, and nothing that would hide a loss: a connection goes to the next of the tasks that the
engine lists at this moment, and if that task refuses it, so does this. The engine takes a task out of its DNS and out
of the mesh in the same step (libnetwork, ``rmServiceBinding``), and connections that are open stay open in both.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys

PIECE = 64 * 1024


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(PIECE):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()


async def main(name: str) -> None:
    """Pass connections on port 80 on to port 80 of the tasks of a service."""
    turns = itertools.count()
    loop = asyncio.get_running_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.StreamWriter | None = None
        try:
            found = await loop.getaddrinfo(name, 80, family=socket.AF_INET, type=socket.SOCK_STREAM)
            addresses = sorted(str(it[4][0]) for it in found)
            from_task, task = await asyncio.open_connection(addresses[next(turns) % len(addresses)], 80)
            await asyncio.gather(pipe(reader, task), pipe(from_task, writer))
        except OSError as error:
            print(f"a connection is lost: {error}", flush=True)
            for it in (writer, task):
                if it:
                    it.transport.abort()
        else:
            writer.close()
            task.close()

    server = await asyncio.start_server(serve, "0.0.0.0", 80)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
