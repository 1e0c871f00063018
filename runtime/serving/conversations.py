"""Convert the earlier turns of a request to the engine's: their texts, their images, and which of a study's images each shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotFound
from echovlm_edge.runtime.contracts.request import Frame, ImageInput, Turn

Frames = tuple[Frame, ...]


def earlier_turns(
    conversation: pb.Conversation, read: Callable[[Sequence[pb.Image]], tuple[ImageInput, ...]], of_study: Frames | None
) -> tuple[tuple[Turn, ...], Frames]:
    """Convert the turns before the present one.

    Args:
        conversation: of the request.
        read: converts the images of a turn; called once for each turn, in order.
        of_study: the frames of the request's study; None if it names none.

    Returns:
        The earlier turns, and the study's frames that are shown with the present one.

    Raises:
        InvalidInput: a turn without a prompt, an image of the study named twice, or one where the request names no study.
        NotFound: the study has no such image.
    """
    for number, turn in enumerate(conversation.turns, 1):
        if not turn.prompt.strip():
            raise InvalidInput(f"Turn {number} has no prompt: send the result's prompt with its text.")
        if of_study is None and turn.study_images:
            raise InvalidInput(
                f"Turn {number} names an image of a study, but the request names no study: send the study's id with it."
            )
    *shown, rest = _by_turn(conversation, of_study or ())
    turns = (
        Turn(turn.prompt, read(turn.images), frames, turn.reply)
        for turn, frames in zip(conversation.turns, shown, strict=True)
    )
    return tuple(turns), rest


def _by_turn(conversation: pb.Conversation, of_study: Frames) -> Iterator[Frames]:
    """Yield the study's frames that each turn shows, and those of the present one last."""
    numbers = [number for turn in conversation.turns for number in turn.study_images]
    if len(set(numbers)) < len(numbers):
        twice, _ = Counter(numbers).most_common(1)[0]
        raise InvalidInput(
            f"The conversation names image {twice} of the study twice: name it once, in the turn that showed it first."
        )
    if missing := set(numbers) - {frame.image for frame in of_study}:
        raise NotFound(f"The study has no image {min(missing)}: it was withdrawn, or never added.")
    for turn in conversation.turns:
        yield tuple(frame for number in turn.study_images for frame in of_study if frame.image == number)
    yield tuple(frame for frame in of_study if frame.image not in numbers)
