"""The clients of the soak that speak HTTP: reports as streams, which must be the texts that gRPC's calls get.

Like gRPC's clients they leave now and then in the middle, or after a time, and note how soon a full queue refuses them.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

REASONS = {408: "deadline_exceeded", 429: "resource_exhausted", 503: "unavailable"}
LONGEST_PAUSE = 2.0  # seconds, however much later the server says


@dataclass(frozen=True)
class Form:
    """A report's form: its fields, and the one file."""

    fields: dict[str, str]
    file: bytes = field(repr=False)


class HttpClient(threading.Thread):
    """Asks repeatedly, and misbehaves now and then, as `soak.Client` does."""

    def __init__(
        self, url: str, token: str, forms: Sequence[Form], texts: Sequence[str], until: float, seed: int
    ) -> None:
        super().__init__()
        self.outcomes: Counter[str] = Counter()
        self.refusals: list[float] = []
        self._url, self._token, self._forms, self._texts, self._until = url, token, forms, texts, until
        self._random = random.Random(seed)

    def run(self) -> None:
        """Run until the time is over."""
        while time.monotonic() < self._until:
            with httpx.Client(headers={"Authorization": f"Bearer {self._token}"}, timeout=60) as client:
                for _ in range(self._random.randint(1, 8)):
                    self._ask(client)

    def _ask(self, client: httpx.Client) -> None:
        which = self._random.randrange(len(self._forms))
        form = self._forms[which]
        manner = self._random.choices(("whole", "cancel", "deadline"), (80, 12, 8))[0]
        leaves_after = self._random.randint(1, 12) if manner == "cancel" else None
        leaves_at = time.monotonic() + self._random.uniform(0.01, 0.5) if manner == "deadline" else float("inf")
        started = time.perf_counter()
        fields, files = {**form.fields, "stream": "true"}, {"file": ("a.dcm", form.file)}
        with client.stream("POST", f"{self._url}/v1/reports", data=fields, files=files) as answer:
            if answer.status_code != httpx.codes.OK:
                self._refused(answer, time.perf_counter() - started)
                return
            events = (json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {"))
            last = dict[str, object]()
            for count, last in enumerate(events, 1):  # noqa: B007
                if count == leaves_after or time.monotonic() > leaves_at:
                    self.outcomes[manner] += 1
                    return
        self.outcomes[self._judged(last, which)] += 1

    def _judged(self, last: dict[str, object], which: int) -> str:
        if "error" in last:
            return "error"
        result = last.get("result")
        return "right" if isinstance(result, dict) and result["text"] == self._texts[which] else "wrong"

    def _refused(self, answer: httpx.Response, seconds: float) -> None:
        self.outcomes[REASONS.get(answer.status_code, str(answer.status_code))] += 1
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self.refusals.append(seconds)
            time.sleep(min(int(answer.headers.get("retry-after-ms", "100")) / 1000, LONGEST_PAUSE))
