"""Ending a server never ends the process, whatever its connections do meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys

# In a process of its own, because what is tested for is a crash. Each end cuts a connection that is still open.
PROGRAM = """
import asyncio, grpc
from echovlm_edge.runtime.serving.transport.listening import Listener

async def open_and_stop():
    listener = Listener("127.0.0.1", 0, [], [])
    await listener.open(None)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
        await listener.stop(0.0, lambda: False)

async def main():
    for _ in range(600):
        await open_and_stop()

asyncio.run(main())
"""


def test_a_grace_that_ends_while_the_server_ends_crashes_nothing() -> None:
    """Two ends of one server at a time met in freed memory, in about one of 600 tries."""
    quiet = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, env=quiet)
    assert done.returncode == 0, f"it ended with {done.returncode}: {done.stderr[-2000:]}"
