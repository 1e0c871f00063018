"""Define a loaded model: the backend that runs it, and its properties that decoding needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from echovlm_edge.runtime.backends import Backend, Floats
from echovlm_edge.runtime.prompting.prompt import Prompt
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary


@dataclass(frozen=True)
class Model:
    """A backend, and the properties of its model that decoding needs."""

    backend: Backend
    rotary: MultimodalRotary
    vocab_size: int
    stop_token_ids: frozenset[int]


def prompt_embeddings(backend: Backend, prompt: Prompt, images: Sequence[Floats], start: int = 0) -> Floats:
    """Embed a prompt's tokens from `start` on, with the images' embeddings in their places.

    Args:
        backend: embeds token ids.
        prompt: n tokens, and at which of them images stand.
        images: each image's embeddings, float32 [m, hidden_size], in the prompt's order.
        start: the first token to embed.

    Returns:
        float32 [n - start, hidden_size].
    """
    embeddings = backend.embed(prompt.token_ids[start:])
    before = int(np.searchsorted(prompt.image_rows, start))
    if before < len(prompt.image_rows):
        embeddings[prompt.image_rows[before:] - start] = np.concatenate(images)[before:]
    return embeddings
