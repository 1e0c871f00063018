"""The stages of a request in chronological order: one name and one meaning for reports, profiles, metrics, traces and the docs.

The names are `request.Stage`'s values; a profile has two more. Only report.proto, and so `echovlm-report --json`, has older names
for two of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from echovlm_edge.runtime.contracts.request import Stage

NETWORK, UNACCOUNTED = "network", "unaccounted"


@dataclass(frozen=True)
class StageName:
    """A stage's display name and its meaning.

    Attributes:
        words: in tables and on the page.
        meaning: a sentence.
    """

    words: str
    meaning: str


STAGES = {
    NETWORK: StageName("network", "Only with a server: sending, receiving, gRPC."),
    Stage.DECODE_IMAGES.value: StageName("decode images", "Image files to frames of pixels."),
    Stage.PREPROCESS.value: StageName("preprocess", "Frames to patches: resizing, normalising."),
    Stage.VISION.value: StageName("vision", "The vision encoder: patches to features."),
    Stage.PROJECTOR.value: StageName("projector", "Features to image tokens of the decoder's width."),
    Stage.PROMPT.value: StageName("prompt", "Text to tokens and positions; cache look-ups."),
    Stage.QUEUE.value: StageName("queue", "The prompt is ready, and all slots of the decoder are taken."),
    Stage.PREFILL.value: StageName("prefill", "The decoder processes the prompt."),
    Stage.DECODE.value: StageName("decode", "The decoder generates tokens one by one; includes sampling."),
    Stage.DETOKENIZE.value: StageName("detokenize", "Tokens to text."),
    Stage.DELIVER.value: StageName(
        "deliver", "The caller handles the text or prepares the request; on a server, the connection does."
    ),
    Stage.WAIT.value: StageName(
        "wait", "Between pieces of work, at any time: other requests' turns, switching threads."
    ),
    UNACCOUNTED: StageName("unaccounted", "Time seen by the clock outside the engine that no stage explains."),
}
ORDER = tuple(STAGES)
OF_THE_ENGINE = tuple(name for name in ORDER if name not in (NETWORK, UNACCOUNTED))
# Figures of a whole request: name, and words.
TOTALS = {
    "first_token": "first token",
    "per_token": "per token",
    "between_tokens": "between tokens",
    "end_to_end": "end to end",
}
_OLDER = {Stage.DECODE_IMAGES: "DECODING_IMAGES", Stage.PREPROCESS: "PREPROCESSING"}


def words(name: str) -> str:
    """Return the display name of a stage or a total."""
    return TOTALS[name] if name in TOTALS else STAGES[name].words


def wire_name(stage: Stage) -> str:
    """Return a stage's name in report.proto."""
    return f"STAGE_{_OLDER.get(stage, stage.name)}"
