"""What was said in a conversation: the system prompt and the turns that its next request continues."""

from __future__ import annotations

from dataclasses import replace

from echovlm_edge.runtime.client.report import Report
from echovlm_edge.runtime.client.wire.requests import EarlierTurn, ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput


class Said:
    """The state of a conversation, which is the client's alone: the server keeps none.

    Attributes:
        system: the system prompt; empty for the model's own.
        turns: the turns so far, the first one first.
        image_tokens: of the last turn, for those that ask for no other: another one would read all images again.
    """

    def __init__(self, system: str = "") -> None:
        """Start without a turn."""
        self.system = system
        self.turns: tuple[EarlierTurn, ...] = ()
        self.image_tokens: int | None = None

    def before(self, request: ReportRequest) -> ReportRequest:
        """Return the request as the next turn."""
        bound = self.image_tokens if request.image_tokens is None else request.image_tokens
        return replace(request, system=self.system, earlier=self.turns, image_tokens=bound)

    def add(self, request: ReportRequest, report: Report) -> None:
        """Add a request that was answered; one that was cancelled has no reply, and is left out."""
        if report.finish_reason == "cancelled":
            return
        named = {number for turn in self.turns for number in turn.study_images}
        shown = {picture.image: None for picture in report.pictures if picture.of_study and picture.image not in named}
        self.image_tokens = request.image_tokens
        self.turns += (EarlierTurn(report.prompt or request.prompt, report.text, request.images, tuple(shown)),)

    def correct(self, text: str) -> None:
        """Replace the last reply.

        Raises:
            InvalidInput: there is none yet.
        """
        if not self.turns:
            raise InvalidInput("The conversation has no reply to correct yet: ask first.")
        self.turns = (*self.turns[:-1], replace(self.turns[-1], reply=text))
