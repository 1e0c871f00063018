"""Stage `tokens`: a GPU's greedy tokens are the reference's, except where its best two are closer than the measured error.

The golden checkpoint in fp16 is compared with the authors' own logits; the demo's checkpoint, in int4 and fp16, with the PyTorch model in
float32 that has the same quantized weights. Each alone, and in batches of other sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.gpu_check.exact_reference import exact_reference
from benchmarks.gpu_check.figures import Divergence, TokenCase, TokenFigures
from benchmarks.gpu_check.greedy import Given, Written, given, write
from benchmarks.gpu_check.setting import DEMO, GOLDEN, Setting
from demo.dicom_writer import dicom_bytes
from demo.simulate import simulate
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.plugins.dual_path_moe.gpu_kernels import has_gpu_kernels
from echovlm_edge.runtime.backends import Backend, SlotMemory
from echovlm_edge.runtime.backends.opening import open_backend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.image_path import read_image
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.contracts.tasks import Language, Task, prompt_for
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import Patches, PreprocessSettings, patchify
from tests.support import golden

CONTEXT = 1024

Asked = tuple[str, str, list[Patches]]  # a name, the text, the images


def run(setting: Setting, keep: Callable[[TokenFigures], None]) -> None:
    """Compare every bundle, and keep each comparison as it comes.

    Raises:
        NotPossibleHere: there is no GPU, or no package for one.
    """
    found: list[TokenCase] = []
    for case in _cases(setting):
        found.append(case)
        keep(TokenFigures(tuple(found)))


def _cases(setting: Setting) -> Iterator[TokenCase]:
    bundle = setting.bundle(GOLDEN, "fp16")
    cases, most = [golden.load(name) for name in golden.CASES], setting.sizes.token_steps
    asked = [(case.name, case.prompt, _patches(bundle, case.images)) for case in cases]
    expected = [
        Written(
            tuple(case.arrays["generated_ids"][:most].tolist()), case.arrays["step_logits"][:most].astype(np.float32)
        )
        for case in cases
    ]
    yield from compared(bundle, "golden fp16", "the authors' code", asked, expected, setting.sizes.batch)
    for precision, spell_out in setting.sizes.demo:
        if spell_out and not (setting.rehearsal or has_gpu_kernels()):
            continue  # without kernels the other one is spelled out, too
        bundle = setting.bundle(DEMO, precision, spell_out)
        asked = list(_reports(bundle, setting.sizes.studies))
        reference = exact_reference(Checkpoint(DEMO), bundle.manifest)
        expected = _alone(reference, bundle, asked, [setting.sizes.token_steps] * len(asked))
        yield from compared(bundle, f"demo {precision}", "PyTorch in float32", asked, expected, setting.sizes.batch)


def compared(
    bundle: Bundle, name: str, reference: str, asked: Sequence[Asked], expected: Sequence[Written], most: int
) -> Iterator[TokenCase]:
    """Write every text alone, then in a batch of `most`, in which texts come several times."""
    backend = open_backend(bundle, memory=SlotMemory(most, CONTEXT))
    steps = [len(text.tokens) for text in expected]
    operator = bundle.manifest.operator_library is not None
    alone = _alone(backend, bundle, asked, steps)
    names = [case for case, _, _ in asked]
    yield compare(name, reference, operator, 1, names, alone, expected)
    prompts = _given(backend, bundle, asked)
    together = [list(islice(cycle(some), most)) for some in (names, prompts, expected, steps)]
    slots = backend.new_slots(SlotMemory(most, CONTEXT))
    written = write(backend, bundle, slots, together[1], together[3])  # type: ignore[arg-type]
    yield compare(name, reference, operator, most, together[0], written, together[2])  # type: ignore[arg-type]


def compare(
    bundle: str,
    reference: str,
    operator: bool,
    batch: int,
    names: Sequence[str],
    written: Sequence[Written],
    expected: Sequence[Written],
) -> TokenCase:
    """Compare texts as far as each has had the reference's tokens as its input: up to its first divergence, that included."""
    divergences, count, error, largest = [], 0, 0.0, 0.0
    for name, ours, theirs in zip(names, written, expected, strict=True):
        differs = [one != other for one, other in zip(ours.tokens, theirs.tokens, strict=True)]
        step = differs.index(True) if any(differs) else len(differs) - 1
        count += step + 1
        error = max(error, float(np.abs(ours.logits[: step + 1] - theirs.logits[: step + 1]).max()))
        largest = max(largest, float(np.abs(theirs.logits[: step + 1]).max()))
        if any(differs):
            logits, right, wrong = theirs.logits[step], theirs.tokens[step], ours.tokens[step]
            divergences.append(Divergence(name, step, right, wrong, float(logits[right] - logits[wrong])))
    return TokenCase(bundle, reference, operator, batch, count, largest, error, tuple(divergences))


def _alone(backend: Backend, bundle: Bundle, asked: Sequence[Asked], steps: Sequence[int]) -> list[Written]:
    slots = backend.new_slots(SlotMemory(1, CONTEXT))
    prompts = _given(backend, bundle, asked)
    return [write(backend, bundle, slots, [prompt], [count])[0] for prompt, count in zip(prompts, steps, strict=True)]


def _given(backend: Backend, bundle: Bundle, asked: Sequence[Asked]) -> list[Given]:
    return [given(backend, bundle, text, images) for _, text, images in asked]


def _reports(bundle: Bundle, studies: Sequence[int]) -> Iterator[Asked]:
    """Ask for a report about each simulated study in each language."""
    for seed in studies:
        study = simulate(seed)
        image = ImageInput(dicom_bytes(study.image, study.truth, study.seed))
        for language in Language:
            text = prompt_for(Task.REPORT, "", 1, language, None)
            yield f"study {seed}, {language.value}", text, _patched(bundle, image)


def _patches(bundle: Bundle, images: Sequence[Path]) -> list[Patches]:
    return [patches for path in images for patches in _patched(bundle, read_image(path, FrameSelection(), True))]


def _patched(bundle: Bundle, image: ImageInput) -> list[Patches]:
    settings = PreprocessSettings.from_config(bundle.manifest.preprocess)
    return [patchify(frame.pixels, settings) for frame in decode_image(image)]
