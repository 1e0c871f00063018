"""Ask a row's question: of an engine in this process, or of a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.report_client import NO_RESULT
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import ServerUnavailable
from echovlm_edge.runtime.contracts.image_path import ImagePath, read_image
from echovlm_edge.runtime.contracts.request import Finished, FrameSelection, GenerationRequest, Priority, Sampling
from echovlm_edge.runtime.contracts.tasks import Task
from echovlm_edge.runtime.evaluation.asking.journal import Answer
from echovlm_edge.runtime.evaluation.data.rows import Row
from echovlm_edge.runtime.evaluation.schema import ModelFacts

if TYPE_CHECKING:  # a server is asked without an engine here
    from echovlm_edge.runtime.engine.report_engine import ReportEngine


class Target(Protocol):
    """What answers. Calls may come from several threads."""

    @property
    def where(self) -> str:
        """Return the place, as the evaluation states it."""
        ...

    def facts(self) -> ModelFacts:
        """Return the loaded bundle's facts."""
        ...

    def calibration_pictures(self) -> frozenset[str]:
        """Return hashes of the pictures that the loaded bundle was calibrated with."""
        ...

    def ask(self, row: Row, sampling: Sampling) -> Answer:
        """Ask a row's question about its pictures; raises what the engine or the client raises."""
        ...


@dataclass(frozen=True)
class InProcess:
    """An engine in this process; questions that are asked at once share its decoder."""

    engine: ReportEngine
    where: str = "in process"

    def facts(self) -> ModelFacts:
        """Return the loaded bundle's facts."""
        info = self.engine.info
        return ModelFacts(info.model, info.bundle_id, info.target, info.precision, info.image_tokens[1])

    def calibration_pictures(self) -> frozenset[str]:
        """Return hashes of the pictures that the loaded bundle was calibrated with."""
        return self.engine.info.calibration_pictures

    def ask(self, row: Row, sampling: Sampling) -> Answer:
        """Ask a row's question about its pictures."""
        pictures = tuple(read_image(path, FrameSelection(), True) for path in row.pictures)
        *_, done = self.engine.generate(GenerationRequest(row.question, pictures, sampling))
        assert isinstance(done, Finished)
        return Answer(done.text, done.finish_reason.value, len(done.token_ids))


@dataclass(frozen=True)
class Remote:
    """A server. Nobody waits for an evaluation: its calls have batch priority.

    Attributes:
        connection: to the server.
        where: its address.
        timeout: seconds for a call, its retries included; None for no limit.
        image_tokens: most visual tokens of a frame; None for the server's bound.
    """

    connection: Connection
    where: str
    timeout: float | None = None
    image_tokens: int | None = None

    def facts(self) -> ModelFacts:
        """Return the loaded bundle's facts."""
        info = self.connection.model_info()
        bound = self.image_tokens or info.limits.max_image_tokens or None
        return ModelFacts(info.model, info.bundle_id, info.target, info.precision, bound)

    def calibration_pictures(self) -> frozenset[str]:
        """Return hashes of the pictures that the loaded bundle was calibrated with; a server before this field names none."""
        return frozenset(self.connection.model_info().calibration_pictures)

    def ask(self, row: Row, sampling: Sampling) -> Answer:
        """Ask a row's question about its pictures."""
        pictures = [ImagePath(path, name=path.name) for path in row.pictures]
        request = ReportRequest(
            Task.QUESTION,
            pictures,
            row.question,
            sampling=sampling,
            priority=Priority.BATCH,
            image_tokens=self.image_tokens,
        )
        result: pb.Result | None = None
        for event in self.connection.generate(request, self.timeout):
            if event.WhichOneof("event") == "result":
                result = event.result
        if result is None:
            raise ServerUnavailable(NO_RESULT)
        finish = pb.FinishReason.Name(result.finish_reason).removeprefix("FINISH_REASON_").lower()
        return Answer(result.text, finish, result.usage.generated_tokens)
