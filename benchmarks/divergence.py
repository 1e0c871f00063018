"""Measure what a format of the weights costs: KL divergence from float32 on the demo's own texts, with paired bootstrap intervals.

python -m benchmarks.divergence                                             rounding by search in blocks of 128, 64 and 32, and plain
python -m benchmarks.divergence --format int4/64 --bundle bundles/mine      other formats, and bundles that exist already

Every bundle reads the same held-out studies with the same texts (teacher forcing), each picture by its own vision encoder. Counted are the
tokens of the answers, the stop token included. `above int8` is the KL that the 4-bit weights add to what the int8 bundle has; the ratio
divides it by that of the first 4-bit bundle. Studies are resampled, the same for all bundles: an interval holds 95 % of the resamples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from demo import corpus
from demo.dicom_writer import dicom_bytes
from demo.simulate import simulate
from echovlm_edge.export.build_engines import build
from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.parity.parity import divergences
from echovlm_edge.export.parity.weight_format import WeightFormat
from echovlm_edge.runtime.backends import Backend, Floats, new_cache
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle, ModelSpec
from echovlm_edge.runtime.contracts.command import SEVERAL, run_command
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, readable_bytes
from echovlm_edge.runtime.contracts.tasks import Language, Task, prompt_for
from echovlm_edge.runtime.engine.model import prompt_embeddings
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import Patches, PreprocessSettings, patchify
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles

REFERENCE, FLOOR = "fp32", "int8"
FORMATS = ("int4/128/plain", "int4/128", "int4/64", "int4/32")
RESAMPLES = 10_000


@dataclass(frozen=True)
class Exchange:
    """A request about one picture, and its true answer."""

    study: int
    patches: Patches
    prompt: str
    answer: str


@dataclass(frozen=True)
class Measured:
    """A bundle's KL from the reference in nats at each token of the answers, and whether its likeliest token is the reference's."""

    label: str
    bytes: int
    nats: NDArray[np.float64]
    same: NDArray[np.bool_]


def exchanges(studies: Sequence[int], settings: PreprocessSettings) -> Iterator[Exchange]:
    """Ask for report and impression of each study in both languages."""
    for seed in studies:
        study, random = simulate(seed), np.random.default_rng(seed)
        (frame,) = decode_image(ImageInput(dicom_bytes(study.image, study.truth, study.seed)))
        patches = patchify(frame.pixels, settings)
        for language in Language:
            for task, write in ((Task.REPORT, corpus.write_report), (Task.DIAGNOSIS, corpus.write_impression)):
                prompt = prompt_for(task, "", 1, language, None)
                yield Exchange(seed, patches, prompt, write(study.truth, language, random))


def answer_logits(backend: Backend, prompts: PromptBuilder, spec: ModelSpec, exchange: Exchange) -> Floats:
    """Compute the logits [n, vocab_size] that predict the answer's n tokens, given the prompt and the answer's tokens before."""
    grid = exchange.patches.grid
    angles = vision_angles(grid, spec.merge_size, spec.vision_head_dim)
    projected = backend.project(backend.encode(exchange.patches.values, angles))
    prompt = prompts.build(exchange.prompt, [grid])
    answer = np.array(prompts.tokenizer.encode(exchange.answer, add_special_tokens=False).ids, np.int64)
    following = np.tile(prompt.next_position + np.arange(len(answer)), (3, 1))
    turns = MultimodalRotary(spec.mrope_section, spec.rope_theta).angles(np.hstack([prompt.positions, following]))
    embeddings = np.concatenate([prompt_embeddings(backend, prompt, [projected]), backend.embed(answer)])
    rows = np.arange(len(prompt.token_ids) - 1, len(embeddings))  # the last predicts the stop token
    return backend.decode(embeddings, turns, 0, rows, new_cache(backend, len(embeddings))).copy()


def read(bundle: Bundle, asked: Sequence[Exchange], console: Console) -> list[Floats]:
    """Compute a bundle's logits of every answer."""
    backend, prompts, spec = OnnxRuntimeBackend(bundle), PromptBuilder.from_bundle(bundle), bundle.manifest.model
    shown = track(asked, f"Reading with {bundle.path.name}", console=console)
    return [answer_logits(backend, prompts, spec, exchange) for exchange in shown]


def measure(bundle: Bundle, expected: Sequence[Floats], asked: Sequence[Exchange], console: Console) -> Measured:
    """Compare a bundle's logits with the reference's."""
    nats, same = [], []
    for logits, reference in zip(read(bundle, asked, console), expected, strict=True):
        nats.append(divergences(reference, logits))
        same.append(logits.argmax(-1) == reference.argmax(-1))
    size = sum(file.bytes for file in bundle.manifest.all_files())
    return Measured(bundle.path.name, size, np.concatenate(nats), np.concatenate(same))


def resampled_means(
    measured: Sequence[Measured], studies: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.float64]:
    """Resample the studies: each bundle's mean KL over the tokens drawn, [RESAMPLES, bundles]; the first row has every study once.

    Args:
        measured: the bundles.
        studies: the study of each token.
        random: draws the resamples.
    """
    names_of, place = np.unique(studies, return_inverse=True)
    sums = np.stack([np.bincount(place, one.nats) for one in measured], axis=1)  # [studies, bundles]
    tokens = np.bincount(place)
    count = len(names_of)
    drawn = random.multinomial(count, np.full(count, 1 / count), RESAMPLES - 1)
    drawn = np.vstack([np.ones(count, np.int64), drawn])
    return drawn @ sums / (drawn @ tokens)[:, None]


def report(measured: Sequence[Measured], studies: NDArray[np.int64], console: Console) -> list[dict[str, object]]:
    """Print the table; `measured` begins with the int8 bundle and the one that the ratios divide by. Returns the figures."""
    means = resampled_means(measured, studies, np.random.default_rng(0))
    above = means - means[:, :1]
    ratios = above[:, 1:] / above[:, 1:2]
    title = f"KL from {REFERENCE} over {len(studies):,} tokens of {len(np.unique(studies))} studies"
    columns = ("bundle", "size", "KL,\nmnats", f"above\n{FLOOR}", "ratio", "same\ntoken")
    table = new_table(title, names(columns[0]), *map(figures, columns[1:]))
    rows: list[dict[str, object]] = []
    for index, one in enumerate(measured):
        low, high = np.quantile(means[:, index], (0.025, 0.975))
        row: dict[str, object] = {
            "bundle": one.label,
            "bytes": one.bytes,
            "kl": means[0, index],
            "kl_interval": [low, high],
        }
        cells = [
            one.label,
            readable_bytes(one.bytes),
            f"{1e3 * means[0, index]:.3f}\n{1e3 * low:.3f} to {1e3 * high:.3f}",
        ]
        if index == 0:
            cells += ["", ""]
        else:
            ratio = ratios[:, index - 1]
            least, most = np.quantile(ratio, (0.025, 0.975))
            row |= {"above": above[0, index], "ratio": ratio[0], "ratio_interval": [least, most]}
            cells += [f"{1e3 * above[0, index]:.3f}", f"{ratio[0]:.3f}\n{least:.3f} to {most:.3f}"]
        table.add_row(*cells, f"{one.same.mean():.2%}")
        rows.append(row | {"same_token": float(one.same.mean())})
    print_table(console, table)
    return rows


def bundles(checkpoint: Path, folder: Path, formats: Sequence[str], console: Console) -> list[Bundle]:
    """Build the checkpoint in each format, again where a bundle is there."""
    made = []
    for name in formats:
        chosen = WeightFormat.parse(name)
        output = folder / chosen.folder
        build(chosen.options(BuildOptions(checkpoint, output, replace=True)), console)
        made.append(Bundle(output))
    return made


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoint"))
    parser.add_argument("--folder", type=Path, default=Path("build/divergence"), help="for the bundles")
    parser.add_argument("--format", **SEVERAL, help=f"to build and measure (default {' '.join(FORMATS)})")
    parser.add_argument("--bundle", type=Path, **SEVERAL, help="measured after the formats")
    parser.add_argument("--seed", type=int, default=0, help="of the first study")
    parser.add_argument("--count", type=int, default=200, help="studies (default 200)")
    parser.add_argument("--json", type=Path, help="write the figures")
    options = parser.parse_args()
    console = Console(stderr=True)

    def command() -> int:
        formats = (REFERENCE, FLOOR, *(options.format or FORMATS))
        reference, *others = bundles(options.checkpoint, options.folder, formats, console)
        settings = PreprocessSettings.from_config(reference.manifest.preprocess)
        asked = list(exchanges(range(options.seed, options.seed + options.count), settings))
        expected = read(reference, asked, console)
        studies = np.repeat([one.study for one in asked], [len(logits) for logits in expected])
        measured = [
            measure(bundle, expected, asked, console) for bundle in (*others, *map(Bundle, options.bundle or ()))
        ]
        rows = report(measured, studies, Console())
        if options.json:
            found = {"tokens": len(studies), "seed": options.seed, "count": options.count, "bundles": rows}
            options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
