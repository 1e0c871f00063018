"""Run a client in a separate process while this one's memory is measured."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil


def memory_during(client: str, address: str) -> tuple[str, int]:
    """Run the Python program `client` on a server of this process.

    Returns what it printed, and by how many bytes this process grew meanwhile.
    """
    this = psutil.Process()
    before = most = this.memory_info().rss
    with subprocess.Popen([sys.executable, "-c", client, address], stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            most = max(most, this.memory_info().rss)
            time.sleep(0.005)
        assert process.stdout
        return process.stdout.read(), most - before
