"""How an engine is set up: what runs at once, and what its caches may use."""

from __future__ import annotations

from dataclasses import dataclass

from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.bundle.context import context_length, slot_count
from echovlm_edge.runtime.bundle.manifest import Manifest


@dataclass(frozen=True)
class EngineOptions:
    """How many sequences run at once, and how much memory caches may use.

    Attributes:
        slots: sequences on the decoder at once; by default 8, or as many as a GPU's bundle decodes together if those are fewer.
        prefix_bytes: memory for the cached keys and values of prompts, on a GPU the GPU's; 0 for none.
        spilled_bytes: the host's memory for those that a GPU's own memory has no room for; 0 for none.
        image_bytes: memory for the cached embeddings of images; 0 for none.
        parked_bytes: memory for batch generations that were preempted by interactive ones, see `Parking`.
        turn_seconds: what a turn of the decoder may take while a prompt is read and others write; see `policy.rows_beside`.
        ignore_stop: write every text to its max_new_tokens, past the model's own end: for measuring only.
        image_tokens: lowers the bundle's bound on a frame's visual tokens; None leaves it.
        drafting: whether tokens are drafted where that pays; the text is the same.
        reply_bytes: memory for the phrases of each client's finished replies, which drafts are made of; 0 for none.
    """

    slots: int | None = None
    prefix_bytes: int = 1 << 30
    image_bytes: int = 256 << 20
    parked_bytes: int = 1 << 30
    turn_seconds: float | None = None
    ignore_stop: bool = False
    spilled_bytes: int = 0
    image_tokens: int | None = None
    drafting: bool = True
    reply_bytes: int = 16 << 20

    def slot_memory(self, manifest: Manifest, max_sequence: int | None) -> SlotMemory:
        """Return what slots a bundle needs; `max_sequence` lowers its context.

        Raises:
            InvalidInput: `max_sequence` or `slots` is above what the bundle allows.
        """
        context = context_length(manifest.limits.max_sequence, max_sequence)
        return SlotMemory(slot_count(manifest.most_slots, self.slots), context, self.prefix_bytes, self.spilled_bytes)


DEFAULTS = EngineOptions()
