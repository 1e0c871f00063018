"""The clients of the soak that speak gRPC, and misbehave now and then."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import grpc

from benchmarks.soak.asks import Ask
from benchmarks.soak.served import connected
from echovlm.v1 import report_pb2_grpc


class Client(threading.Thread):
    """Calls repeatedly, and misbehaves now and then."""

    def __init__(self, address: str, asks: Sequence[Ask], texts: Sequence[str], until: float, seed: int) -> None:
        super().__init__()
        self.outcomes: Counter[str] = Counter()
        self.refusals: list[float] = []  # seconds until a call that found no place was refused
        self._address, self._asks, self._texts, self._until = address, asks, texts, until
        self._random = random.Random(seed)

    def run(self) -> None:
        """Run until the time is over."""
        while time.monotonic() < self._until:
            with connected(self._address) as stub:
                for _ in range(self._random.randint(1, 8)):
                    if not self._call(stub):
                        break  # the connection is dropped while calls run on it

    def _call(self, stub: report_pb2_grpc.ReportServiceStub) -> bool:
        which = self._random.randrange(len(self._asks))
        manner = self._random.choices(("whole", "cancel", "deadline", "drop"), (80, 8, 8, 4))[0]
        timeout = self._random.uniform(0.01, 0.5) if manner == "deadline" else None
        started = time.perf_counter()
        call = self._asks[which].start(stub, timeout)
        try:
            leave_after = self._random.randint(1, 12) if manner in ("cancel", "drop") else None
            last = None
            for count, last in enumerate(call, 1):  # noqa: B007
                if count == leave_after:
                    if manner == "cancel":
                        call.cancel()
                    self.outcomes[manner] += 1
                    return manner == "cancel"
            right = last is not None and last.result.text == self._texts[which]
            self.outcomes["right" if right else "wrong"] += 1
        except grpc.RpcError as error:
            self.outcomes[error.code().name.lower()] += 1
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                self.refusals.append(time.perf_counter() - started)
                metadata: Any = error.trailing_metadata()
                trailing = {key: str(value) for key, value in metadata or ()}
                pause = trailing.get("grpc-retry-pushback-ms", "100")
                time.sleep(min(int(pause) / 1000, 2.0))
        return True
