"""Measure parity: compare each stage of a bundle, in its own engines, with the PyTorch model on real ultrasound frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.export.parity.reference import DecoderInput, TorchBackend
from echovlm_edge.runtime.backends import Backend, Floats, SlotCache, new_cache
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK, ModelSpec, Parity
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.engine.model import prompt_embeddings
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import Patches, PreprocessSettings, patchify
from echovlm_edge.runtime.imaging.sample import SAMPLE, sample_image
from echovlm_edge.runtime.prompting.prompt import Prompt, PromptBuilder
from echovlm_edge.runtime.prompting.rotary import Angles, MultimodalRotary, vision_angles
from echovlm_edge.runtime.prompting.windows import image_windows

TOLERANCE = 1e-3  # of an fp32 bundle: the largest error, in units of the largest reference value or of 1
DECODED_TOKENS = 32
COMPARED_POSITIONS = 128  # of a prompt, evenly spaced, its last always: logits of a large vocabulary are large
ROWS_AT_ONCE = 16  # of logits, whose float64 copies are large
PROMPT = "Describe the ultrasound image."


@dataclass(frozen=True)
class Sample:
    """A named image, ready for the vision encoder."""

    name: str
    patches: Patches


@dataclass(frozen=True)
class Question:
    """What the decoder is asked: a prompt about some of the samples, by their places among them."""

    name: str
    prompt: str
    images: tuple[int, ...]


def samples(settings: PreprocessSettings, files: Sequence[Path] = ()) -> list[Sample]:
    """Return the images to compare on: the given files' frames, or a real frame and a narrow crop of it."""
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
    reference: TorchBackend,
    open_candidate: Callable[[], Backend],
    prompts: PromptBuilder,
    spec: ModelSpec,
    images: Sequence[Sample],
    decoded: int = DECODED_TOKENS,
    questions: Sequence[Question] = (),
) -> Iterator[Parity]:
    """Run each stage of a bundle on the reference's own inputs to it.

    The bundle writes; the reference then reads prompt and text in one pass through its layers, and gives its logits at the
    same places. The two are never in memory together.

    Args:
        reference: the PyTorch model, which may hold a layer at a time.
        open_candidate: loads the bundle; its result is released between stages.
        prompts: the bundle's.
        spec: the model's shape.
        images: what to run on.
        decoded: tokens that the bundle writes, each its likeliest, stop tokens included.
        questions: what the decoder is asked; if empty, each image with a prompt of its own.

    Yields:
        vision_encoder and projector of every image; token_embedding, prefill (logits of prompt positions, through chunks as
        served) and decode (logits after each token that the bundle wrote) of every question.
    """
    questions = questions or [Question(image.name, PROMPT, (place,)) for place, image in enumerate(images)]
    features = [encode(reference, image, spec) for image in images]
    embeddings = [reference.project(some) for some in features]
    yield from _compare_images(open_candidate(), images, spec, features, embeddings)
    rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
    texts = _write_texts(open_candidate(), reference, rotary, prompts, images, embeddings, questions, decoded)
    expected = reference.logits([text.tokens for text in texts])
    for question, text, logits in zip(questions, texts, expected, strict=True):
        actual, count = text.embedding_of_prompt, len(text.prefill)
        yield measure("token_embedding", question.name, text.expected_embedding, actual)
        yield measure("prefill", question.name, logits[:count], text.prefill, logits=True)
        decode = measure("decode", question.name, logits[count:], text.decode, logits=True)
        yield replace(decode, agreed_tokens=agreed_tokens(logits[count - 1 : -1], text.written), written_tokens=decoded)


def encode(backend: Backend, image: Sample, spec: ModelSpec) -> Floats:
    """Run a vision encoder on an image: features [p, embed_dim]."""
    grid = image.patches.grid
    angles = vision_angles(grid, spec.merge_size, spec.vision_head_dim)
    return backend.encode(image.patches.values, angles, image_windows(grid, spec.merge_size, spec.vision_window))


def read_prompt(reference: TorchBackend, prompts: PromptBuilder, spec: ModelSpec, image: Sample) -> DecoderInput:
    """Make the decoder's input of an image and its prompt, with logits for the last token."""
    projected = reference.project(encode(reference, image, spec))
    prompt = prompts.build(PROMPT, [image.patches.grid])
    rotary = MultimodalRotary(spec.mrope_section, spec.rope_theta)
    tokens = prompt_embeddings(reference, prompt, [projected])
    return DecoderInput(tokens, rotary.angles(prompt.positions), np.array([len(tokens) - 1]))


@dataclass(frozen=True)
class _Text:
    """What a bundle made of one prompt: logits at some of its tokens, the tokens int64 [n] that it wrote, and logits after each.

    `tokens` is what it was given, prompt and text, for the reference to read.
    """

    tokens: DecoderInput
    expected_embedding: Floats
    embedding_of_prompt: Floats
    prefill: Floats
    written: NDArray[np.int64]
    decode: Floats


def _compare_images(
    candidate: Backend,
    images: Sequence[Sample],
    spec: ModelSpec,
    features: Sequence[Floats],
    embeddings: Sequence[Floats],
) -> Iterator[Parity]:
    for image, encoded, projected in zip(images, features, embeddings, strict=True):
        yield measure("vision_encoder", image.name, encoded, encode(candidate, image, spec))
        yield measure("projector", image.name, projected, candidate.project(encoded))


def _write_texts(
    candidate: Backend,
    reference: TorchBackend,
    rotary: MultimodalRotary,
    prompts: PromptBuilder,
    images: Sequence[Sample],
    embeddings: Sequence[Floats],
    questions: Sequence[Question],
    decoded: int,
) -> list[_Text]:
    texts = []
    for question in questions:
        prompt = prompts.build(question.prompt, [images[place].patches.grid for place in question.images])
        projected = [embeddings[place] for place in question.images]
        texts.append(_write_text(candidate, reference, rotary, prompt, projected, decoded))
    return texts


def _write_text(
    candidate: Backend,
    reference: TorchBackend,
    rotary: MultimodalRotary,
    prompt: Prompt,
    projected: Sequence[Floats],
    decoded: int,
) -> _Text:
    length = len(prompt.token_ids)
    cache = new_cache(candidate, length + decoded)
    following = prompt.next_position + np.arange(decoded)
    angles = rotary.angles(np.concatenate([prompt.positions, np.tile(following, (3, 1))], axis=1))
    tokens = [prompt_embeddings(reference, prompt, projected)]
    rows = np.unique(np.linspace(0, length - 1, min(length, COMPARED_POSITIONS)).round().astype(np.int64))
    read = prefill(candidate, tokens[0], angles, rows, cache)
    logits, written, decode = read[-1], [], []
    for past in range(length, length + decoded):
        written.append(logits.argmax())
        tokens.append(reference.embed(np.array(written[-1:])))
        turn = Angles(angles.cos[past : past + 1], angles.sin[past : past + 1])
        logits = candidate.decode(tokens[-1], turn, past, np.zeros(1, np.int64), cache)[0].copy()
        decode.append(logits)
    return _Text(
        DecoderInput(np.concatenate(tokens), angles, np.concatenate([rows, length + np.arange(decoded)])),
        reference.embed(prompt.token_ids),
        candidate.embed(prompt.token_ids),
        read,
        np.array(written),
        np.stack(decode),
    )


def prefill(candidate: Backend, tokens: Floats, angles: Angles, rows: NDArray[np.int64], cache: SlotCache) -> Floats:
    """Compute logits at `rows` of a prompt, prefilled in chunks as it is served."""
    logits = []
    for start in range(0, len(tokens), PREFILL_CHUNK):
        chunk = slice(start, start + PREFILL_CHUNK)
        wanted = rows[(rows >= start) & (rows < chunk.stop)] - start
        part = Angles(angles.cos[: len(tokens)][chunk], angles.sin[: len(tokens)][chunk])
        logits.append(candidate.decode(tokens[chunk], part, start, wanted, cache).copy())
    return np.concatenate(logits)


def measure(stage: str, sample: str, expected: Floats, actual: Floats, logits: bool = False) -> Parity:
    """Measure the errors of `actual` against `expected` [..., n]; for logits, also agreement of the best token and KL divergence."""
    error = np.abs(expected.astype(np.float64) - actual)
    norm = float(np.linalg.norm(expected)) or 1.0
    relative = float(np.linalg.norm(error)) / norm
    found = Parity(stage, sample, float(np.abs(expected).max()), float(error.max()), float(error.mean()), relative)
    if not logits:
        return found
    nats = divergences(expected, actual)
    return replace(
        found,
        top1_agreement=float((expected.argmax(-1) == actual.argmax(-1)).mean()),
        kl_divergence=float(nats.mean()),
        kl_standard_error=float(nats.std(ddof=1) / math.sqrt(len(nats))) if len(nats) > 1 else None,
        positions=len(nats),
    )


def divergences(expected: Floats, actual: Floats) -> NDArray[np.float64]:
    """Compute KL(expected || actual) of the softmax distributions of logits [n, vocab_size]: nats [n]."""
    found = []
    for first in range(0, len(expected), ROWS_AT_ONCE):
        p, q = (_log_softmax(logits[first : first + ROWS_AT_ONCE]) for logits in (expected, actual))
        found.append((np.exp(p) * (p - q)).sum(-1))
    return np.concatenate(found)


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


def agreed_tokens(expected: Floats, written: NDArray[np.int64]) -> int:
    """Count the tokens before the first that the reference, given those before it, would not have written."""
    different = np.flatnonzero(expected.argmax(-1) != written)
    return int(different[0]) if len(different) else len(written)


def _log_softmax(logits: Floats) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    whole: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return whole


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise NotPossibleHere(f"The sample image {file} cannot be read ({error.strerror}).") from None
