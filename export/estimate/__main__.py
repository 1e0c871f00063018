"""`python -m echovlm_edge.export.estimate`: estimate what a bundle will take on a target, by the roofline; nothing is measured."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from echovlm_edge.export.build_options import DEFAULT_MAX_SEQUENCE, check_context
from echovlm_edge.export.calibration.rounding.mixed import bits_of
from echovlm_edge.export.estimate.estimating import estimate
from echovlm_edge.export.estimate.printed import ESTIMATE, compare, show
from echovlm_edge.export.estimate.roofline import Roofline
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.export.targets import TARGETS, target
from echovlm_edge.export.weights.quantize import BLOCK_SIZES, PRECISIONS, Precision, PrecisionPolicy
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.command import SEVERAL, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.profiling.workloads import NAMED, SMALL, USUAL


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
            from echovlm_edge.export.estimate.plot import plot

            plot(found, options.plot)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
