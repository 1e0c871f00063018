"""Greedy sequences on a backend, without a server: each step is one decoder call for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Backend, Floats, Logits, SlotCache, SlotRows
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK, Bundle
from echovlm_edge.runtime.bundle.token_embedding import TokenEmbedding
from echovlm_edge.runtime.imaging.preprocess import Patches
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles


@dataclass(frozen=True)
class Given:
    """A prompt as the decoder takes it: embeddings [n, hidden_size], M-RoPE positions int64 [3, n], and the next position."""

    embeddings: Floats = field(repr=False)
    positions: NDArray[np.int64]
    next_position: int


@dataclass(frozen=True)
class Written:
    """The tokens of a sequence, and the logits [n, vocab_size] that each was chosen by."""

    tokens: tuple[int, ...]
    logits: Floats = field(repr=False)


def given(backend: Backend, bundle: Bundle, text: str, images: Sequence[Patches]) -> Given:
    """Encode a prompt's images, and embed it with the bundle's own embedding, whatever runs it."""
    spec = bundle.manifest.model
    projected = [
        backend.project(backend.encode(image.values, vision_angles(image.grid, spec.merge_size, spec.vision_head_dim)))
        for image in images
    ]
    prompt = PromptBuilder.from_bundle(bundle).build(text, [image.grid for image in images])
    embeddings = TokenEmbedding.of(bundle)[prompt.token_ids]
    if projected:
        embeddings[prompt.image_rows] = np.concatenate(projected)
    return Given(embeddings, prompt.positions, prompt.next_position)


class Batch:
    """Sequences in the first of a backend's slots."""

    def __init__(self, backend: Backend, bundle: Bundle, slots: Sequence[SlotCache]) -> None:
        """Take as many slots as there are sequences, the first ones of a call of `new_slots`."""
        spec = bundle.manifest.model
        self._backend, self._slots, self._embedding = backend, slots, TokenEmbedding.of(bundle)
        self._rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
        self.filled = [0] * len(slots)
        self._positions = [0] * len(slots)

    def read(self, prompts: Sequence[Given]) -> list[Floats]:
        """Run each sequence's prompt, in chunks as a server does; returns the logits [vocab_size] after it."""
        found = []
        for number, (slot, prompt) in enumerate(zip(self._slots, prompts, strict=True)):
            angles, last = self._rotary.angles, len(prompt.embeddings)
            for start in range(0, last, PREFILL_CHUNK):
                stop = min(start + PREFILL_CHUNK, last)
                logits = self._backend.decode(
                    prompt.embeddings[start:stop],
                    angles(prompt.positions[:, start:stop]),
                    start,
                    np.array([stop - start - 1]),
                    slot,
                )
            found.append(np.array(logits[0]))
            self.filled[number], self._positions[number] = last, prompt.next_position
        return found

    def step(self, tokens: Sequence[int]) -> Sequence[Logits]:
        """Append a token to each sequence, in one decoder call; returns the logits of each."""
        embeddings = self._embedding[np.array(tokens)]
        rows = [
            SlotRows(slot, filled, embeddings[row : row + 1], self._rotary.angles(np.full((3, 1), position)))
            for row, (slot, filled, position) in enumerate(zip(self._slots, self.filled, self._positions, strict=True))
        ]
        logits = [row for (row,) in self._backend.turn(rows)]
        self.filled = [filled + 1 for filled in self.filled]
        self._positions = [position + 1 for position in self._positions]
        return logits


def write(
    backend: Backend, bundle: Bundle, slots: Sequence[SlotCache], prompts: Sequence[Given], steps: Sequence[int]
) -> list[Written]:
    """Write greedy texts of as many tokens as `steps` says, past stop tokens, all sequences in one call a step."""
    batch = Batch(backend, bundle, slots)
    logits = [[row] for row in batch.read(prompts)]
    tokens = [[int(rows[0].argmax())] for rows in logits]
    for _ in range(max(steps) - 1):
        for own, rows, row in zip(tokens, logits, batch.step([own[-1] for own in tokens]), strict=True):
            rows.append(np.array(row))
            own.append(int(row.argmax()))
    return [
        Written(tuple(own[:count]), np.stack(rows[:count]))
        for own, rows, count in zip(tokens, logits, steps, strict=True)
    ]
