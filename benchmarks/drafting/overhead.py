"""What drafting costs where it never helps: random text, whose guesses are sure and always wrong.

On one thread, in processor time of the decoder's thread: other work on the machine counts little.

python -m benchmarks.drafting.overhead --bundle bundles/demo --steps 100000
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, Sampling
from echovlm_edge.runtime.drafting.guess import Guess
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine

TEXT = 500  # tokens of a text
TEMPERATURE = 10.0  # at which every token is about equally likely
MOST_LONGER = 1.05
SHARE = 0.95  # of every guess


class Liar:
    """Phrases that are never what follows, but by accident."""

    def __init__(self, vocabulary: int) -> None:
        """Guess among so many tokens."""
        self._vocabulary, self._asked = vocabulary, 0

    def following(self, tokens: Sequence[int]) -> Guess | None:
        """Guess some token."""
        self._asked += 7919
        return Guess((tokens[-1] + self._asked) % self._vocabulary, SHARE, 6)


@dataclass
class Decoder:
    """An engine, and the clock of its decoder's thread."""

    engine: ReportEngine
    clock: int

    def seconds(self) -> float:
        """Return the processor time that the thread has had."""
        return time.clock_gettime(self.clock)

    def write(self, seed: int) -> tuple[float, Finished]:
        """Write a random text; returns the processor time, and the text."""
        request = GenerationRequest("Write anything.", sampling=Sampling(TEXT, temperature=TEMPERATURE, seed=seed))
        started = self.seconds()
        *_, last = self.engine.generate(request)
        assert isinstance(last, Finished)
        return self.seconds() - started, last


def opened(path: Path, drafting: bool) -> Decoder:
    """Open a bundle, with guesses that are always wrong."""
    bundle = Bundle(path)
    options = EngineOptions(1, 0, 0, ignore_stop=True, drafting=drafting)
    backend = open_backend(bundle, 1, options.slot_memory(bundle.manifest, None))
    others = set(threading.enumerate())
    engine = ReportEngine(bundle, backend, options=options, phrases=Liar(bundle.manifest.model.vocab_size))
    (thread,) = (one for one in threading.enumerate() if one not in others and one.name == "decoder")
    assert thread.ident is not None
    return Decoder(engine, time.pthread_getcpuclockid(thread.ident))


def main(arguments: list[str] | None = None) -> int:
    """Measure pairs of texts, without and with drafting in turn; returns 1 where a text differs or takes too long."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--bundle", type=Path, default=Path("bundles/demo"), metavar="DIR")
    made.add_argument(
        "--steps", type=int, default=10_000, metavar="N", help="tokens to write in each way (default 10000)"
    )
    options = made.parse_args(arguments)
    decoders = [opened(options.bundle, drafting) for drafting in (False, True)]
    for decoder in decoders:
        decoder.write(0)
    ratios, different = list[float](), 0
    for seed in range(1, 1 + options.steps // TEXT):
        order = (0, 1) if seed % 2 else (1, 0)
        runs = {which: decoders[which].write(seed) for which in order}
        ratios.append(runs[1][0] / runs[0][0])
        different += runs[0][1].token_ids != runs[1][1].token_ids
    stats = decoders[1].engine.stats().scheduler
    rows = stats.written_tokens + sum(stats.drafting.drafted.values()) - stats.drafting.saved_steps
    print(
        f"{len(ratios) * TEXT} tokens each: {median(ratios):.3f} times as long with guesses that are wrong (median of pairs), "
        f"{rows / stats.steps:.2f} rows a step, {stats.drafting.saved_steps} steps saved, {different} texts differ"
    )
    for decoder in decoders:
        decoder.engine.close()
    return int(different > 0 or median(ratios) > MOST_LONGER)


if __name__ == "__main__":
    sys.exit(run_command(main))
