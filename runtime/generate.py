"""One sequence: prefill in chunks, then token by token until a stop token, the limit, or the caller stops it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from echovlm_edge.runtime.backends import Backend, Cache, Floats, Logits
from echovlm_edge.runtime.prompt import Prompt
from echovlm_edge.runtime.request import FinishReason, Sampling
from echovlm_edge.runtime.rotary import MultimodalRotary
from echovlm_edge.runtime.sampling import Sampler

PREFILL_CHUNK = 512  # tokens between two looks at whether the caller is still there


class Stopped(Exception):
    """The caller stopped the generation before its first token."""


@dataclass(frozen=True)
class Model:
    """A backend and what decoding needs to know of its model."""

    backend: Backend
    rotary: MultimodalRotary
    vocab_size: int
    stop_token_ids: frozenset[int]


@dataclass(frozen=True)
class Step:
    """One generated token; `finish` is set on the last one. `seconds` is its decoder pass and choice."""

    token_id: int = field(repr=False)
    logits: Logits = field(repr=False)
    seconds: float
    finish: FinishReason | None = None


def prompt_embeddings(backend: Backend, prompt: Prompt, images: Sequence[Floats], start: int = 0) -> Floats:
    """Embeddings [n - start, hidden_size] of a prompt's tokens from `start` on, the images', each [m, hidden_size], in their places."""
    embeddings = backend.embed(prompt.token_ids[start:])
    before = int(np.searchsorted(prompt.image_rows, start))
    if before < len(prompt.image_rows):
        embeddings[prompt.image_rows[before:] - start] = np.concatenate(images)[before:]
    return embeddings


def prefill(
    model: Model, prompt: Prompt, embeddings: Floats, cache: Cache, stopped: Callable[[], bool] = lambda: False
) -> Logits:
    """Fill the cache with the prompt, a chunk at a time.

    Returns:
        Logits float32 [vocab_size] after its last token, valid until the next decoder call.

    Raises:
        Stopped: `stopped()` said so between two chunks.
    """
    length = len(embeddings)
    for start in range(0, length, PREFILL_CHUNK):
        if stopped():
            raise Stopped
        chunk = slice(start, min(start + PREFILL_CHUNK, length))
        angles = model.rotary.angles(prompt.positions[:, chunk])
        last = np.array([chunk.stop - start - 1])
        logits = model.backend.decode(embeddings[chunk], angles, start, last, cache)
    row: Logits = logits[0]
    return row


def decode(
    model: Model,
    prompt: Prompt,
    logits: Logits,
    cache: Cache,
    sampling: Sampling,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Step]:
    """Generate from the logits after the prompt; checks `stopped()` before every token but the first.

    Ends with a step whose `finish` is set, except when stopped: then it just ends.
    """
    sampler = Sampler(sampling, prompt.token_ids, model.vocab_size)
    past, position = len(prompt.token_ids), prompt.next_position
    limit = min(sampling.max_new_tokens, cache.max_sequence - past)
    token = -1
    for count in range(1, limit + 1):
        started = time.perf_counter()
        if count > 1:
            if stopped():
                return
            angles = model.rotary.angles(np.full((3, 1), position, dtype=np.int64))
            logits = model.backend.decode(
                model.backend.embed(np.array([token])), angles, past, np.zeros(1, np.int64), cache
            )[0]
            past, position = past + 1, position + 1
        token = sampler.choose(logits)
        seconds = time.perf_counter() - started
        finish = FinishReason.STOP if token in model.stop_token_ids else FinishReason.LENGTH if count == limit else None
        yield Step(token, logits, seconds, finish)
        if finish:
            return
