"""Compute logits at given tokens: by our backend in the calls that the engine makes, and by PyTorch in float32, in one pass."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.peer import Question
from echovlm_edge.export.parity.reference import DecoderInput, TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import Backend, Floats, new_cache
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK, Bundle, ModelSpec
from echovlm_edge.runtime.engine.model import prompt_embeddings
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.prompting.rotary import Angles, MultimodalRotary, vision_angles
from echovlm_edge.runtime.prompting.windows import image_windows


def by_bundle(bundle: Bundle, question: Question, forced: tuple[int, ...], threads: int) -> Floats:
    """Run a bundle: the prompt in the engine's chunks, then each token by itself."""
    backend = OnnxRuntimeBackend(bundle, threads)
    given = _given(backend, bundle, question, forced)
    length, total = len(question.token_ids), len(given.embeddings)
    cache = new_cache(backend, total)
    starts = [*range(0, length, PREFILL_CHUNK), *range(length, total)]
    logits = []
    for start, stop in zip(starts, [*starts[1:], total], strict=True):
        angles = Angles(given.angles.cos[start:stop], given.angles.sin[start:stop])
        last = np.array([stop - start - 1])
        logits.append(backend.decode(given.embeddings[start:stop], angles, start, last, cache)[0].copy())
    return np.stack(logits[-1 - len(forced) :])


def by_pytorch(checkpoint: Path, bundle: Bundle, question: Question, forced: tuple[int, ...]) -> Floats:
    """Run the PyTorch model, a layer in memory at a time; the bundle tells the prompt and the model's shape."""
    backend = TorchBackend(Checkpoint(checkpoint), streamed=True)
    (logits,) = backend.logits([_given(backend, bundle, question, forced)])
    return logits


def _given(backend: Backend, bundle: Bundle, question: Question, forced: tuple[int, ...]) -> DecoderInput:
    """Make the decoder's input of a prompt and the tokens behind it, with logits for the prompt's last token and for those."""
    spec: ModelSpec = bundle.manifest.model
    grid, patches = question.grid, np.load(question.patches)
    windows = image_windows(grid, spec.merge_size, spec.vision_window)
    features = backend.encode(patches, vision_angles(grid, spec.merge_size, spec.vision_head_dim), windows)
    prompt = PromptBuilder.from_bundle(bundle).build(question.text, [grid])
    tokens = np.array(forced, np.int64)
    following: NDArray[np.int64] = np.tile(prompt.next_position + np.arange(len(tokens)), (3, 1))
    rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
    embeddings = [prompt_embeddings(backend, prompt, [backend.project(features)]), backend.embed(tokens)]
    length = len(prompt.token_ids)
    return DecoderInput(
        np.concatenate(embeddings),
        rotary.angles(np.concatenate([prompt.positions, following], axis=1)),
        np.arange(length - 1, length + len(tokens)),
    )
