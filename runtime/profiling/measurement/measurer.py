"""Run workloads, in this process or against a server, by a clock outside of what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Protocol

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.report import STAGE_OF_WIRE
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, ImageInput, Sampling, Stage
from echovlm_edge.runtime.contracts.stages import NETWORK
from echovlm_edge.runtime.contracts.tasks import Task
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.profiling.measurement.energy import Meter, energy_of
from echovlm_edge.runtime.profiling.measurement.memory import PeakMemory
from echovlm_edge.runtime.profiling.measurement.requests import frame, text_of
from echovlm_edge.runtime.profiling.schema import BundleFacts, Energy, Interval, Run
from echovlm_edge.runtime.profiling.workloads import Workload

TEMPLATE_PROBE = 64  # pixels of the frame that the text's length is found with


@dataclass(frozen=True)
class Measured:
    """A request's figures, and its spans where they are known."""

    run: Run
    intervals: tuple[Interval, ...] = ()


class Target(Protocol):
    """The engine or server that is measured."""

    @property
    def where(self) -> str:
        """Return the place, as the profile states it."""
        ...

    def facts(self) -> BundleFacts:
        """Return the loaded bundle's facts."""
        ...

    def ask(self, prompt: str, images: Sequence[ImageInput], new_tokens: int) -> Measured:
        """Run one request to its end."""
        ...


@dataclass(frozen=True)
class InProcess:
    """An engine in this process."""

    engine: ReportEngine
    where: str = "in process"

    def facts(self) -> BundleFacts:
        """Return the loaded bundle's facts."""
        info = self.engine.info
        return BundleFacts(info.model, info.bundle_id, info.target, info.precision, info.max_sequence)

    def ask(self, prompt: str, images: Sequence[ImageInput], new_tokens: int) -> Measured:
        """Run one request to its end."""
        request = GenerationRequest(prompt, tuple(images), _sampling(new_tokens))
        done: Finished | None = None
        started = time.perf_counter()
        for event in self.engine.generate(request):
            if isinstance(event, Finished):
                done = event
        seconds = time.perf_counter() - started
        assert done is not None
        spans = [span for span in done.spans if span.stage is Stage.DECODE]  # one for each token
        ends = [span.start + span.seconds for span in spans]
        run = Run(
            seconds,
            done.first_token_seconds,
            {stage.value: taken for stage, taken in done.seconds.items()},
            tuple(after - before for before, after in pairwise(ends)),
            done.prompt_tokens,
            done.image_tokens,
            len(done.token_ids),
            done.reused_tokens,
            len({span.start for span in spans}) - 1 if spans else None,
        )
        return Measured(run, tuple(Interval(span.stage.value, span.start, span.seconds) for span in done.spans))


@dataclass(frozen=True)
class Remote:
    """A server: its own stages, and as `network` the rest of the time on this client's clock."""

    client: Connection
    where: str

    def facts(self) -> BundleFacts:
        """Return the loaded bundle's facts."""
        info = self.client.model_info()
        return BundleFacts(info.model, info.bundle_id, info.target, info.precision, info.limits.max_sequence)

    def ask(self, prompt: str, images: Sequence[ImageInput], new_tokens: int) -> Measured:
        """Run one request to its end."""
        task = Task.REPORT if images else Task.QUESTION
        request = ReportRequest(task, images, prompt, sampling=_sampling(new_tokens))
        result: pb.Result | None = None
        arrivals: list[float] = []
        started = time.perf_counter()
        for event in self.client.generate(request):
            match event.WhichOneof("event"):
                case "text":
                    arrivals.append(time.perf_counter() - started)
                case "result":
                    result = event.result
        seconds = time.perf_counter() - started
        if result is None:
            raise NotPossibleHere(f"The server at {self.where} ended the stream without a result: see its log.")
        timings, usage = result.timings, result.usage
        # A newer server's further stages count as unaccounted.
        stages = {
            STAGE_OF_WIRE[stage.stage].value: stage.seconds for stage in timings.stages if stage.stage in STAGE_OF_WIRE
        }
        stages[NETWORK] = max(seconds - timings.total_seconds, 0.0)
        return Measured(
            Run(
                seconds,
                arrivals[0] if arrivals else None,
                stages,
                tuple(after - before for before, after in pairwise(arrivals)),
                usage.prompt_tokens,
                usage.image_tokens,
                usage.generated_tokens,
                usage.reused_tokens,
            )
        )


@dataclass(frozen=True)
class Measurement:
    """A workload's runs, and the memory and energy that they took."""

    workload: Workload
    requests: tuple[Measured, ...]
    seconds: float  # while any of them ran
    memory: dict[str, int]
    energy: Energy


@dataclass
class Measurer:
    """Measures workloads on one target."""

    target: Target
    runs: int
    warmups: int
    meter: Meter | None = None
    gpu: Callable[[], int] | None = None  # bytes in use on it
    images: Sequence[ImageInput] = ()  # a user's own, instead of a workload's frames
    prompt: str = ""  # a user's own
    tick: Callable[[], None] = lambda: None  # called after every request
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def measure(self, workload: Workload) -> Measurement:
        """Warm up, then run.

        Raises:
            InvalidInput: the context does not hold it.
        """
        prompt = self.prompt or self._prompt(workload)
        seen = self._frames(workload) if workload.seen else None
        if seen is not None:
            self.target.ask(prompt, seen, 1)

        def ask() -> Measured:
            frames = seen if seen is not None else self._frames(workload)
            measured = self.target.ask(prompt, frames, workload.new_tokens)
            self.tick()
            return measured

        for _ in range(self.warmups):
            ask()

        def client(_: int) -> list[Measured]:
            return [ask() for _ in range(self.runs)]

        before = self.meter.joules() if self.meter else {}
        with PeakMemory(self.gpu) as memory, ThreadPoolExecutor(workload.clients) as clients:
            started = time.perf_counter()
            requests = [measured for of_one in clients.map(client, range(workload.clients)) for measured in of_one]
            seconds = time.perf_counter() - started
        energy = energy_of(self.meter, before, len(requests), seconds)
        here = memory.peak if isinstance(self.target, InProcess) else {}
        return Measurement(workload, tuple(requests), seconds, here, energy)

    def _frames(self, workload: Workload) -> Sequence[ImageInput]:
        if self.images:
            return self.images
        return [frame(next(self._numbers), workload.width, workload.height) for _ in range(workload.frames)]

    def _prompt(self, workload: Workload) -> str:
        """Write a text whose tokens, the template's included, are the workload's."""
        frames = [frame(0, TEMPLATE_PROBE, TEMPLATE_PROBE)] * workload.frames
        counted: dict[int, int] = {}

        def tokens(text: str) -> int:
            words = text.count(" ")
            if words not in counted:
                counted[words] = self._count(text, frames)
            return counted[words]

        return text_of(workload.text_tokens, tokens)

    def _count(self, text: str, frames: Sequence[ImageInput]) -> int:
        if isinstance(self.target, InProcess):
            prompt = self.target.engine.prompts.build(text, [(1, 2, 2)] * len(frames))
            return len(prompt.token_ids) - len(prompt.image_rows)
        run = self.target.ask(text, frames, 1).run
        return run.prompt_tokens - run.image_tokens


def check_images(images: Sequence[ImageInput], workloads: Sequence[Workload]) -> None:
    """Refuse a user's own pictures together with other workloads.

    Raises:
        InvalidInput: they come with others.
    """
    if images and len(workloads) > 1:
        raise InvalidInput("--image makes a workload of its own: leave --workload and the lists of a grid out.")


def _sampling(new_tokens: int) -> Sampling:
    return Sampling(max_new_tokens=new_tokens)
