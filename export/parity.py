"""Parity: each stage of a bundle, in its own engines, against the PyTorch model on real ultrasound frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Backend, Floats
from echovlm_edge.runtime.bundle import Parity
from echovlm_edge.runtime.errors import NotPossibleHere
from echovlm_edge.runtime.generate import PREFILL_CHUNK, Model, decode, prefill, prompt_embeddings
from echovlm_edge.runtime.image import decode_image
from echovlm_edge.runtime.preprocess import Patches, PreprocessSettings, patchify
from echovlm_edge.runtime.prompt import Prompt, PromptBuilder
from echovlm_edge.runtime.request import ImageInput, Sampling
from echovlm_edge.runtime.rotary import Angles, vision_angles
from echovlm_edge.runtime.sample import SAMPLE, sample_image

TOLERANCE = 1e-3  # of an fp32 bundle: the largest error, in units of the largest reference value or of 1
DECODED_TOKENS = 8
PROMPT = "Describe the ultrasound image."


@dataclass(frozen=True)
class Sample:
    """A named image, ready for the vision encoder."""

    name: str
    patches: Patches


def samples(settings: PreprocessSettings, files: Sequence[Path] = ()) -> list[Sample]:
    """The images to compare on: the given files' frames, or a real frame and a narrow crop of it."""
    if files:
        return [
            Sample(frame.name, patchify(frame.pixels, settings))
            for file in files
            for frame in decode_image(ImageInput(_read(file), name=file.name))
        ]
    (frame,) = decode_image(sample_image())
    crop = np.ascontiguousarray(frame.pixels[80:200, 60:110])
    return [Sample(SAMPLE, patchify(frame.pixels, settings)), Sample(f"{SAMPLE}, crop", patchify(crop, settings))]


def compare(
    reference: Model,
    candidate: Backend,
    prompts: PromptBuilder,
    merge_size: int,
    head_dim: int,
    images: Sequence[Sample],
) -> Iterator[Parity]:
    """Run each stage of `candidate` on the reference's own inputs to it; the last samples' stages run a whole prompt.

    Yields vision_encoder, projector, prefill (logits of every prompt position, through chunks as served) and decode
    (logits of the reference's next tokens) for each sample.
    """
    for image in images:
        angles = vision_angles(image.patches.grid, merge_size, head_dim)
        features = reference.backend.encode(image.patches.values, angles)
        yield measure("vision_encoder", image.name, features, candidate.encode(image.patches.values, angles))
        embeddings = reference.backend.project(features)
        yield measure("projector", image.name, embeddings, candidate.project(features))
        prompt = prompts.build(PROMPT, [image.patches.grid])
        yield from _compare_decoder(reference, candidate, prompt, image.name, embeddings)


def measure(stage: str, sample: str, expected: Floats, actual: Floats, logits: bool = False) -> Parity:
    """Errors of `actual` against `expected` [..., n]; for logits, agreement of the best and KL divergence too."""
    error = np.abs(expected.astype(np.float64) - actual)
    agreement, divergence = (
        (_top1_agreement(expected, actual), _divergence(expected, actual)) if logits else (None, None)
    )
    norm = float(np.linalg.norm(expected)) or 1.0
    relative = float(np.linalg.norm(expected.astype(np.float64) - actual)) / norm
    peak = float(np.abs(expected).max())
    return Parity(stage, sample, peak, float(error.max()), float(error.mean()), relative, agreement, divergence)


def check(stage: Parity) -> None:
    """Refuse an fp32 stage whose largest error is over the tolerance.

    Raises:
        NotPossibleHere: it is; the sentence names the stage and the figures.
    """
    if not stage.max_abs_error <= TOLERANCE * max(1.0, stage.peak):
        raise NotPossibleHere(
            f"The fp32 {stage.stage} differs from the PyTorch model by {stage.max_abs_error:.2g} on {stage.sample}, more than "
            f"{TOLERANCE:g}: this is a fault of the build or of the installed ONNX Runtime; install constraints.txt's versions."
        )


def _compare_decoder(
    reference: Model, candidate: Backend, prompt: Prompt, sample: str, images: Floats
) -> Iterator[Parity]:
    length = len(prompt.token_ids)
    caches = [backend.new_cache(length + DECODED_TOKENS) for backend in (reference.backend, candidate)]
    embeddings = prompt_embeddings(reference.backend, prompt, [images])
    expected, actual = (
        _all_logits(backend, embeddings, reference.rotary.angles(prompt.positions), cache)
        for backend, cache in zip((reference.backend, candidate), caches, strict=True)
    )
    yield measure("prefill", sample, expected, actual, logits=True)
    sampling = Sampling(max_new_tokens=DECODED_TOKENS)
    first = prefill(reference, prompt, embeddings, caches[0]).copy()
    steps = list(decode(reference, prompt, first, caches[0], sampling))
    if len(steps) < 2:
        return
    continued = []
    for count, step in enumerate(steps[:-1]):
        position = np.full((3, 1), prompt.next_position + count, np.int64)
        token = reference.backend.embed(np.array([step.token_id]))
        row = candidate.decode(
            token, reference.rotary.angles(position), length + count, np.zeros(1, np.int64), caches[1]
        )
        continued.append(row[0].copy())
    yield measure("decode", sample, np.stack([step.logits for step in steps[1:]]), np.stack(continued), logits=True)


def _all_logits(backend: Backend, embeddings: Floats, angles: Angles, cache: object) -> Floats:
    rows = []
    for start in range(0, len(embeddings), PREFILL_CHUNK):
        chunk = slice(start, start + PREFILL_CHUNK)
        part = Angles(angles.cos[chunk], angles.sin[chunk])
        tokens = embeddings[chunk]
        rows.append(backend.decode(tokens, part, start, np.arange(len(tokens)), cache).copy())  # type: ignore[arg-type]
    return np.concatenate(rows)


def _top1_agreement(expected: Floats, actual: Floats) -> float:
    return float((expected.argmax(-1) == actual.argmax(-1)).mean())


def _divergence(expected: Floats, actual: Floats) -> float:
    """KL(expected || actual) of the softmax distributions, nats, mean over rows."""
    p, q = _log_softmax(expected), _log_softmax(actual)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    whole: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return whole


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise NotPossibleHere(f"The sample image {file} cannot be read ({error.strerror}).") from None
