"""`python -m echovlm_edge.export.estimate`: estimate what a bundle will take on a target, by the roofline; nothing is measured."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from echovlm_edge.export.build_options import DEFAULT_MAX_SEQUENCE, check_context
from echovlm_edge.export.calibration.rounding.mixed import bits_of
from echovlm_edge.export.config import EchoVLMConfig
from echovlm_edge.export.devices import Device, Reached
from echovlm_edge.export.quantize import BLOCK_SIZES, PRECISIONS, Precision, PrecisionPolicy
from echovlm_edge.export.roofline import WORKING_GB, Roofline, bound_by, bound_seconds, expected_seconds
from echovlm_edge.export.targets import TARGETS, target
from echovlm_edge.runtime.bundle.cost_model import Cost, CostModel
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.command import SEVERAL, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, words
from echovlm_edge.runtime.profiling.workloads import LARGE, NAMED, SMALL, USUAL, Workload

COMPARED = 4096  # the context whose memory is compared
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
ESTIMATE = "ESTIMATE, not measured"
IMAGES = "images"  # the vision encoder and the projector together


@dataclass(frozen=True)
class Stage:
    """One stage of one workload."""

    workload: str
    stage: str
    read_gb: float
    tera_operations: float
    bound: str
    roofline_seconds: float
    expected_seconds: float


@dataclass(frozen=True)
class Outcome:
    """What a user would notice of one workload."""

    workload: str
    first_token_seconds: float
    tokens_per_second: float
    whole_seconds: float


@dataclass(frozen=True)
class Estimate:
    """What is estimated of one model on one target."""

    target: str
    device: str
    precision: str
    stages: tuple[Stage, ...]
    outcomes: tuple[Outcome, ...]
    memory_gb: dict[int, float]
    usable_gb: float
    reached: Reached

    @property
    def fits(self) -> bool:
        """Whether the shortest context fits."""
        return min(self.memory_gb.values()) <= self.usable_gb


def estimate(roofline: Roofline, precision: str, workloads: Sequence[Workload] = LARGE) -> Estimate:
    """Estimate each workload, and the memory by context.

    Raises:
        NotPossibleHere: the target is for no machine in particular.
    """
    device = roofline.target.device
    if device is None:
        raise NotPossibleHere(f"The target {roofline.target.name} is for any machine: estimate one of {_devices()}.")
    stages, outcomes, costs = [], [], roofline.costs
    for workload in workloads:
        found = [_stage(workload, name, cost, device) for name, cost in _costs(costs, workload)]
        stages += found
        seconds = {stage.stage: stage.expected_seconds for stage in found}
        first = sum(value for name, value in seconds.items() if name != "decode")
        speed = (workload.new_tokens - 1) / seconds["decode"]
        outcomes.append(Outcome(workload.name, first, speed, first + seconds["decode"]))
    longest = roofline.longest_context
    memory = {tokens: roofline.memory_gb(tokens) for tokens in CONTEXTS if tokens <= longest}
    memory = memory or {longest: roofline.memory_gb(longest)}
    return Estimate(
        roofline.target.name,
        device.name,
        precision,
        tuple(stages),
        tuple(outcomes),
        memory,
        device.usable_gb,
        device.reached,
    )


def _costs(model: CostModel, workload: Workload) -> Iterator[tuple[str, Cost]]:
    if frames := workload.encoded_frames:
        tokens = frames * workload.frame_tokens
        yield IMAGES, model.vision(tokens, frames) + model.projector(tokens, frames)
    yield "prefill", model.prefill(workload.prefill_tokens, workload.cached_tokens)
    yield "decode", model.decode(workload.new_tokens, workload.cached_tokens + workload.prefill_tokens)


def _stage(workload: Workload, name: str, cost: Cost, device: Device) -> Stage:
    return Stage(
        workload.name,
        name,
        cost.read_bytes / 1e9,
        cost.operations / 1e12,
        bound_by(cost, device),
        bound_seconds(cost, device),
        expected_seconds(cost, device, device.reached.images if name == IMAGES else device.reached.decoder),
    )


def _devices() -> str:
    return ", ".join(name for name, known in TARGETS.items() if known.device)


def show(found: Estimate, console: Console) -> None:
    """Print the tables of one estimate."""
    title = f"{ESTIMATE}: {found.precision} on {found.device} (target {found.target})"
    stages = new_table(
        title,
        names("workload"),
        names("stage"),
        figures("GB\nread"),
        figures("T oper-\nations"),
        words("bound by"),
        figures("at the\nbound, s"),
        figures("expected,\ns"),
    )
    for stage in found.stages:
        cells = (f"{stage.read_gb:,.1f}", f"{stage.tera_operations:,.2f}", stage.bound)
        stages.add_row(
            stage.workload,
            stage.stage,
            *cells,
            f"{stage.roofline_seconds:,.3f}",
            f"{stage.expected_seconds:,.3f}",
        )
    outcomes = new_table(
        "", names("workload"), figures("first token,\ns"), figures("tokens/s"), figures("whole answer,\ns")
    )
    for outcome in found.outcomes:
        first, speed = f"{outcome.first_token_seconds:,.2f}", f"{outcome.tokens_per_second:,.1f}"
        outcomes.add_row(outcome.workload, first, speed, f"{outcome.whole_seconds:,.1f}")
    memory = new_table("", figures("context,\ntokens"), figures(f"memory, GB\n(of {found.usable_gb:.1f})"), words(""))
    for tokens, size in found.memory_gb.items():
        memory.add_row(f"{tokens:,}", f"{size:,.1f}", "" if size <= found.usable_gb else "does not fit")
    for table in (stages, outcomes, memory):
        print_table(console, table)
    console.print(_foot(found.reached), soft_wrap=True, highlight=False)


def _foot(reached: Reached) -> str:
    source = "measured on such a machine" if reached.measured else "assumed"
    return (
        f"{ESTIMATE}. Expected: {reached.bandwidth:.0%} of the bandwidth, {reached.images:.0%} of the arithmetic for images, "
        f"{reached.decoder:.0%} for prompts ({source}). Memory includes {WORKING_GB} GB for the device's context and activations "
        "(assumed)."
    )


def compare(found: list[Estimate], console: Console, left_out: Sequence[Workload] = ()) -> None:
    """Print one row for each target; not of the workloads `left_out`, for which it has no room."""
    hidden = {workload.name for workload in left_out}
    table = new_table(
        f"{ESTIMATE}: first token, s / tokens a second",
        names("target"),
        *(figures(outcome.workload) for outcome in found[0].outcomes if outcome.workload not in hidden),
        figures("GB at\n4,096"),
        figures("of"),
    )
    for each in found:
        cells = [
            f"{outcome.first_token_seconds:.2f} / {outcome.tokens_per_second:.1f}"
            for outcome in each.outcomes
            if outcome.workload not in hidden
        ]
        cells = cells if each.fits else ["does not fit"] + [""] * (len(cells) - 1)
        size = each.memory_gb.get(COMPARED, max(each.memory_gb.values()))
        table.add_row(each.target, *cells, f"{size:.1f}", f"{each.usable_gb:.1f}")
    print_table(console, table)


def _roofline(options: argparse.Namespace, name: str) -> tuple[Roofline, str]:
    if options.bundle:
        manifest = Bundle(options.bundle, finished=False).manifest
        if not manifest.source.config:
            raise NotPossibleHere(f"The bundle {options.bundle} does not say its model's shape: rebuild it.")
        config, precision, block = manifest.source.config, manifest.precision, manifest.block_size
        bits = manifest.calibration.bits if manifest.calibration else None
        sequence = manifest.limits.max_sequence if options.max_sequence is None else options.max_sequence
        where = f"{options.bundle}'s config"
    else:
        config, where = _read_config(options.config), str(options.config)
        precision, block, sequence = options.precision, options.block_size, options.max_sequence
        bits = options.bits
    chosen = target(name)
    longest = EchoVLMConfig.from_json(config, where).decoder.max_position_embeddings
    chosen.check(precision, chosen.cache_types[0])
    sequence = min(DEFAULT_MAX_SEQUENCE, longest) if sequence is None else sequence
    check_context(sequence, longest)
    policy = PrecisionPolicy.of(precision, block)
    if options.bits is not None:
        _check_bits(options.bits, policy.decoder)
    return Roofline.of(config, chosen, policy, sequence, bits), precision


def _check_bits(bits: float, base: Precision) -> None:
    """Refuse an average that no mix of 4 and 8 bits has.

    Raises:
        NotPossibleHere: it is none.
    """
    least, most = bits_of(base), bits_of(Precision(8, base.block_size))
    if base.bits != 4 or not least <= bits <= most:
        raise NotPossibleHere(
            f"--bits {bits:g} is no mix of 4 and 8 bits: give --precision int4 and between {least:g} and {most:g}."
        )


def _read_config(file: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return read
    except (OSError, ValueError) as error:
        raise NotPossibleHere(f"{file} cannot be read as JSON ({error}): give a checkpoint's config.json.") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m echovlm_edge.export.estimate",
        description="Estimate memory, time to first token and tokens a second of a bundle on a target, by the roofline.",
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--bundle", type=Path, metavar="BUNDLE", help="a bundle, whatever its target")
    model.add_argument("--config", type=Path, metavar="FILE", help="or a checkpoint's config.json")
    add = parser.add_argument
    devices = [name for name, known in TARGETS.items() if known.device]
    add("--target", **SEVERAL, choices=devices, help="one, or several to compare (default rtx)")
    add(
        "--workload",
        **SEVERAL,
        choices=list(NAMED),
        metavar="NAME",
        help=f"of {', '.join(NAMED)} (default {' '.join(workload.name for workload in USUAL)})",
    )
    add("--precision", choices=PRECISIONS, default="int4", help="with --config (default int4)")
    add("--block-size", type=int, choices=BLOCK_SIZES, default=128, help="with --config (default 128)")
    add(
        "--bits",
        type=float,
        metavar="N",
        help="bits of a weight of the decoder's layers, as echovlm-build --bits mixes them; a --bundle knows its own",
    )
    add("--max-sequence", type=int, metavar="N", help="the cache's capacity (default: the bundle's, or 4096)")
    add("--json", type=Path, metavar="F", help="write the figures")
    add("--plot", type=Path, metavar="F", help="draw them (PNG, SVG or PDF)")
    options = parser.parse_args(arguments)

    def command() -> int:
        workloads = [NAMED[name] for name in options.workload or [workload.name for workload in USUAL]]
        found = [estimate(*_roofline(options, name), workloads) for name in options.target or ["rtx"]]
        console = Console()
        for each in found:
            show(each, console)
        if len(found) > 1:
            compare(found, console, () if options.workload else SMALL)
        if options.json:
            content = {"note": ESTIMATE, "estimates": [asdict(each) for each in found]}
            options.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
        if options.plot:
            from echovlm_edge.export.estimate_plot import plot

            plot(found, options.plot)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
