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


def prompt_embeddings(
    backend: Backend, prompt: Prompt, images: Sequence[Floats], start: int = 0, stop: int | None = None
) -> Floats:
    """Embed a prompt's tokens from `start` up to `stop`, with the images' embeddings in their places.

    Args:
        backend: embeds token ids.
        prompt: n tokens, and at which of them images stand.
        images: each image's embeddings, float32 [m, hidden_size], in the prompt's order.
        start: the first token to embed.
        stop: the token after the last; by default the prompt's end.

    Returns:
        float32 [stop - start, hidden_size].
    """
    stop = len(prompt.token_ids) if stop is None else stop
    embeddings = backend.embed(prompt.token_ids[start:stop])
    first, last = np.searchsorted(prompt.image_rows, (start, stop))
    rows, before = prompt.image_rows[first:last] - start, 0  # image rows of the images before this one
    for image in images:
        part = image[max(first - before, 0) : max(last - before, 0)]
        place = max(before - first, 0)
        embeddings[rows[place : place + len(part)]] = part
        before += len(image)
    return embeddings
