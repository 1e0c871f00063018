"""Prompts that fit the context, about frames that this engine reads as they are."""

from __future__ import annotations

from collections.abc import Sequence

from echovlm_edge.runtime.contracts.errors import ImageTokensOutOfRange, InvalidInput, NotFound
from echovlm_edge.runtime.contracts.request import Frame, GenerationRequest
from echovlm_edge.runtime.engine.forms.form_compiler import CompiledForm
from echovlm_edge.runtime.imaging.image_file import Measured
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, patch_grid
from echovlm_edge.runtime.prompting.prompt import FindReply, Grid, Prompt, PromptBuilder, PromptTurn, merged_patches

MORE = "or build the bundle with --max-sequence."


class FittedPrompts:
    """Builds prompts of at most `max_sequence` tokens; a longer one is refused with what would make it shorter."""

    def __init__(self, prompts: PromptBuilder, settings: PreprocessSettings, max_sequence: int) -> None:
        """Build them with the bundle's template and the engine's bounds on a frame."""
        self._prompts, self._settings, self._limit = prompts, settings, max_sequence

    def about(self, frames: Sequence[Frame], measured: Sequence[Measured] = (), text: str = "") -> Prompt:
        """Build the prompt of one turn about frames, and about files that were only measured.

        Raises:
            InvalidInput: it does not fit.
            NotFound: the frames were read for another bundle.
        """
        return self._fitting(self._prompts.build(text, self._grids(frames, measured)))

    def conversation(
        self, request: GenerationRequest, measured: Sequence[Sequence[Measured]], find_reply: FindReply
    ) -> Prompt:
        """Build a request's prompt, with the files of each turn.

        Raises:
            InvalidInput: it does not fit.
            NotFound: the frames were read for another bundle.
            NotPossibleHere: the chat template cannot render it.
        """
        turns = [
            PromptTurn(turn.prompt, self._grids(turn.frames, sizes), turn.reply)
            for turn, sizes in zip(request.turns, measured, strict=True)
        ]
        images = sum(merged_patches(grid, self._settings.merge_size) for turn in turns for grid in turn.grids)
        if request.earlier and images >= self._limit:  # before replies are searched after so many tokens
            raise InvalidInput(
                f"The conversation's images take {images} tokens, the context holds {self._limit}: send fewer or "
                f"smaller images, {MORE}"
            )
        return self._fitting(self._prompts.build_conversation(request.system, turns, find_reply))

    def fit_choices(self, prompt: Prompt, form: CompiledForm | None) -> None:
        """Check that each of a form's choices fits after the prompt.

        Raises:
            InvalidInput: one does not.
        """
        longest = max(map(len, form.choices), default=0) if form else 0
        if len(prompt.token_ids) + longest >= self._limit:
            raise InvalidInput(
                f"The prompt takes {len(prompt.token_ids)} tokens and the longest choice {longest}, the context holds "
                f"{self._limit}: send less, {MORE}"
            )

    def _fitting(self, prompt: Prompt) -> Prompt:
        length = len(prompt.token_ids)
        if length >= self._limit:
            raise InvalidInput(
                f"The prompt takes {length} tokens ({len(prompt.image_rows)} of them for images), the context holds "
                f"{self._limit}: send fewer or smaller images or a shorter text, {MORE}"
            )
        return prompt

    def _grids(self, frames: Sequence[Frame], measured: Sequence[Measured]) -> list[Grid]:
        if not all(self._reads_as(frame) for frame in frames):
            raise NotFound(
                "The study's images were read for another bundle than the one that the server has now: begin a new study."
            )
        sizes = [frame.pixels.shape[:2] for frame in frames] + [size for image in measured for size in image.sizes]
        return [patch_grid(height, width, self._settings) for height, width in sizes]

    def _reads_as(self, frame: Frame) -> bool:
        """Check whether this engine would read the frame at the resolution that it has."""
        try:
            return frame.resolution == self._settings.bounded(frame.image_tokens).resolution
        except ImageTokensOutOfRange:
            return False
