"""`echovlm-build --compare`: the same checkpoint in several formats: bytes, how near the text is to PyTorch's, speed here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from rich.console import Console

from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.parity.verdict import DECODER_STAGES
from echovlm_edge.export.parity.weight_format import WeightFormat
from echovlm_edge.runtime.backends import new_cache
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle, Manifest
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, readable_bytes
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary

PROMPT, TEXT = 256, 16  # tokens that the speed is measured on
RUNS = 3
NORMAL_95 = 1.96  # standard errors on either side of a mean


@dataclass(frozen=True)
class Nearness:
    """The decoder's next token compared with PyTorch's, over all samples of a bundle.

    Attributes:
        positions: how many tokens were compared.
        kl: mean KL divergence, nats.
        kl_margin: of its 95 % interval, on either side.
        same: share of positions with the same likeliest token.
        agreed: tokens that both write alike before the first difference, the mean of the samples.
        written: tokens that were written for each sample.
    """

    positions: int
    kl: float
    kl_margin: float
    same: float
    agreed: float
    written: int

    @classmethod
    def of(cls, manifest: Manifest) -> Nearness | None:
        """Sum up the parity in a manifest; None where the decoder was not compared."""
        stages = [stage for stage in manifest.parity if stage.stage in DECODER_STAGES and stage.positions]
        texts = [(stage.agreed_tokens, stage.written_tokens) for stage in stages if stage.agreed_tokens is not None]
        if not stages or not texts:
            return None
        positions = sum(stage.positions for stage in stages)

        def mean(values: Sequence[float]) -> float:
            return sum(stage.positions * value for stage, value in zip(stages, values, strict=True)) / positions

        errors = [stage.positions * (stage.kl_standard_error or 0) / positions for stage in stages]
        return cls(
            positions,
            mean([stage.kl_divergence or 0 for stage in stages]),
            NORMAL_95 * math.hypot(*errors),
            mean([stage.top1_agreement or 0 for stage in stages]),
            float(np.mean([agreed for agreed, _ in texts])),
            max(written or 0 for _, written in texts),
        )


@dataclass(frozen=True)
class Speed:
    """Tokens a second of the decoder alone: reading a prompt, and writing."""

    reading: float
    writing: float


def measure_speed(bundle: Bundle) -> Speed:
    """Read a prompt of random embeddings and write after it, alone on this computer; the median of several runs."""
    backend, spec = OnnxRuntimeBackend(bundle), bundle.manifest.model
    count = min(PROMPT, bundle.manifest.limits.max_sequence - TEXT)
    random = np.random.default_rng(0)
    prompt = random.standard_normal((count, spec.hidden_size), dtype=np.float32)
    rotary, cache = MultimodalRotary(spec.mrope_section, spec.rope_theta), new_cache(backend, count + TEXT)

    def seconds(start: int, tokens: int) -> float:
        angles = rotary.angles(np.tile(start + np.arange(tokens), (3, 1)))
        started = time.perf_counter()
        backend.decode(prompt[:tokens], angles, start, np.array([tokens - 1]), cache)
        return time.perf_counter() - started

    seconds(0, count)  # maps the weights
    reading = median(seconds(0, count) for _ in range(RUNS))
    writing = median(seconds(count + index, 1) for index in range(TEXT))
    return Speed(count / reading, 1 / writing)


def compare_formats(
    options: BuildOptions, formats: Sequence[str], build: Callable[[BuildOptions, Console], Manifest], console: Console
) -> None:
    """Build a bundle of each format in a folder of its own under `options.output`, and print how they compare.

    Args:
        options: of every build, but for the format.
        formats: each as `WeightFormat.parse` takes it.
        build: builds one.
        console: where progress is drawn.

    Raises:
        NotPossibleHere: a format is none, or two are the same; or a build fails.
    """
    chosen = [WeightFormat.parse(text) for text in formats]
    if len({one.folder for one in chosen}) < len(chosen):
        raise NotPossibleHere("Two of the formats to compare are the same: leave one out.")
    builds = [replace(one.options(options), output=options.output / one.folder) for one in chosen]
    for one in builds:
        one.check()
    rows = []
    for one in builds:
        console.print(f"Building {one.output}", highlight=False, soft_wrap=True)
        manifest = build(one, console)
        speed = measure_speed(Bundle(one.output)) if one.chosen_target.runs_on_cpu else None
        rows.append((one.output, manifest, Nearness.of(manifest), speed))
    _print(rows, Console())


def _print(rows: Sequence[tuple[Path, Manifest, Nearness | None, Speed | None]], console: Console) -> None:
    near = [nearness for *_, nearness, _ in rows if nearness]
    title = f"{rows[0][1].source.name} for {rows[0][1].target}"
    headings = ("size", "KL, nats,\n95 %", "same\ntoken", "tokens\nagree", "reading,\ntokens/s", "writing,\ntokens/s")
    table = new_table(title, names("bundle"), *map(figures, headings))
    for output, manifest, nearness, speed in rows:
        size = readable_bytes(sum(file.bytes for file in manifest.all_files()))
        compared, timed = ["", "", ""], ["", ""]
        if nearness:
            compared = [
                f"{nearness.kl:.2g}\n± {nearness.kl_margin:.1g}",
                f"{nearness.same:.1%}",
                f"{nearness.agreed:.0f} of {nearness.written}",
            ]
        if speed:
            timed = [f"{speed.reading:,.0f}", f"{speed.writing:,.1f}"]
        table.add_row(output.name, size, *compared, *timed)
    print_table(console, table)
    if near:
        console.print(
            f"The next token at {near[0].positions:,} positions, compared with the PyTorch model; tokens agree until the first difference. "
            "The interval is that of the mean over these positions.",
            highlight=False,
            soft_wrap=True,
        )
