"""Forward Unix sockets to loopback ports: a way into a network namespace. `python unix_door.py FILE=PORT …`."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress


async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


async def lead(path: str, port: int) -> None:
    async def enter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))

    await (await asyncio.start_unix_server(enter, path)).serve_forever()


async def main(doors: list[str]) -> None:
    ways = [door.rpartition("=") for door in doors]
    await asyncio.gather(*(lead(path, int(port)) for path, _, port in ways))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
