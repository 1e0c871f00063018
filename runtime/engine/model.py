"""A loaded model: what runs it, and what decoding needs to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echovlm_edge.runtime.backends import Backend, Floats
from echovlm_edge.runtime.prompting.prompt import Prompt
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary


@dataclass(frozen=True)
class Model:
    """A backend and what decoding needs to know of its model."""

    backend: Backend
    rotary: MultimodalRotary
    vocab_size: int
    stop_token_ids: frozenset[int]


def prompt_embeddings(backend: Backend, prompt: Prompt, images: Sequence[Floats], start: int = 0) -> Floats:
    """Embeddings [n - start, hidden_size] of a prompt's tokens from `start` on, the images', each [m, hidden_size], in their places."""
    embeddings = backend.embed(prompt.token_ids[start:])
    before = int(np.searchsorted(prompt.image_rows, start))
    if before < len(prompt.image_rows):
        embeddings[prompt.image_rows[before:] - start] = np.concatenate(images)[before:]
    return embeddings
