"""`echovlm-doctor`: says what this machine is, which bundles fit it, what is misconfigured, and how to fix it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from echovlm_edge.runtime.bundle.manifest import MANIFEST
from echovlm_edge.runtime.contracts.command import SEVERAL, add_version, run_command
from echovlm_edge.runtime.doctor.checks import Finding, Level, findings, fits, target_for
from echovlm_edge.runtime.doctor.facts import Facts, facts
from echovlm_edge.runtime.doctor.recorded_loads import recorded_loads
from echovlm_edge.runtime.doctor.server_options import refused
from echovlm_edge.runtime.serving.supervision.memory_fit import LOWERABLE
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings, add_option, settings_of

STYLES = {Level.WRONG: "red", Level.SLOW: "yellow", Level.FINE: "green"}
WRONG = 1
SIGNED = "require_signature"  # the server's option
NOT_VERIFIED = "The sizes of their files were compared, the hashes were not: --verify does that."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 1 where a bundle that was named cannot be served here."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: _examine(options))


def _examine(options: argparse.Namespace) -> int:
    machine = facts()
    served = list(_settings(options))
    found = [*findings(machine), *(refused(served[0], options.config) if options.config and served else ())]
    bundles = [
        finding
        for settings in served
        for finding in (fits(settings.bundle, machine, settings, options.verify), *recorded_loads(settings.bundle))
    ]
    verified = options.verify or all(settings.require_signature for settings in served)
    if options.json:
        everything = {
            "machine": asdict(machine),
            "target": target_for(machine),
            "findings": [_plain(finding) for finding in found],
            "bundles": [_plain(finding) for finding in bundles],
            "verified": verified,
        }
        print(json.dumps(everything, indent=1))
    else:
        console = Console()
        console.print(_machine(machine))
        _say(console, "Configuration", found or [Finding(Level.FINE, "Nothing that could be seen is misconfigured.")])
        _say(console, "Bundles", bundles)
        if bundles and not verified:
            console.print(NOT_VERIFIED, style="dim", highlight=False)
    return WRONG if any(finding.level is Level.WRONG for finding in [*found, *bundles]) else 0


def _settings(options: argparse.Namespace) -> Iterator[ServeSettings]:
    """Yield the server's options for each named bundle, or for the configuration file's."""
    typed = {name: value for name, value in vars(options).items() if name in (*LOWERABLE, SIGNED) and value is not None}
    if not options.bundle and options.config:
        yield settings_of(options.config, typed)
    for path in _bundles(options.bundle):
        yield settings_of(options.config, typed | {"bundle": path})


def _bundles(given: Sequence[Path]) -> Iterator[Path]:
    """Yield bundles, and the bundles inside folders of them."""
    for path in given:
        found = path.glob(f"*/{MANIFEST}") if path.is_dir() else ()
        inside = sorted(manifest.parent for manifest in found if not manifest.parent.is_symlink())
        if inside and not (path / MANIFEST).exists():
            yield from inside
        else:
            yield path


def _machine(machine: Facts) -> Table:
    table = Table(Column(no_wrap=True, style="bold"), Column(overflow="fold"), box=box.SIMPLE, show_header=False)
    table.title = "This machine"
    for name, value in _rows(machine):
        if value:
            table.add_row(name, value)
    return table


def _rows(machine: Facts) -> Iterator[tuple[str, str]]:
    yield "device", machine.device or ""
    clock = f", {machine.clock_now or '?'} of {machine.clock_max} MHz" if machine.clock_max else ""
    yield "CPU", f"{machine.cpu}, {machine.cores_allowed} of {machine.cores} cores{clock}"
    yield "CPU features", ", ".join(machine.features) or "none that the kernels use"
    yield "kernels", machine.kernels or "not built"
    yield "governor", ", ".join(machine.governors) or "not reported by this system"
    yield (
        "memory",
        f"{machine.memory / 1e9:.1f} GB, {machine.available / 1e9:.1f} GB can be had; swap {machine.swap / 1e9:.1f} GB",
    )
    for gpu in machine.gpus:
        yield "GPU", f"{gpu.name}, {gpu.memory / 1e9:.1f} GB, compute capability {gpu.capability}, driver {gpu.driver}"
    if not machine.gpus:
        yield "GPU", "none found by NVML"
    yield "TensorRT", ", ".join(f"{name} {number}" for name, number in machine.tensorrt.items()) or "not installed"
    yield "ONNX Runtime", f"{machine.onnxruntime}: {', '.join(machine.providers)}"
    yield "JetPack", machine.jetpack or ""
    yield "power mode", machine.power_mode or ""
    yield "target", f"{target_for(machine)} (echovlm-build --target {target_for(machine)})"


def _say(console: Console, title: str, found: Sequence[Finding]) -> None:
    if not found:
        return
    console.print(f"[bold]{title}[/bold]")
    lines = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1, 0, 2))
    for finding in found:
        lines.add_row(Text(finding.level.value, STYLES[finding.level]), Text(finding.what))
        if finding.fix:
            lines.add_row("", Text(finding.fix, "dim"))
    console.print(lines)


def _plain(finding: Finding) -> dict[str, str]:
    return {"level": finding.level.value, "what": finding.what, "mend": finding.fix}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="echovlm-doctor", description="Say what this machine is, which bundles fit it, and what is misconfigured."
    )
    add_version(parser)
    parser.add_argument("--bundle", type=Path, **SEVERAL, default=[], metavar="DIR", help="bundles, or folders of them")
    parser.add_argument(
        "--config", type=Path, metavar="F", help="the server's TOML file: its options are judged, and its bundle"
    )
    parser.add_argument("--verify", action="store_true", help="hash every file of the bundles, which reads them whole")
    add_option(parser, SIGNED)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    group = parser.add_argument_group("options of the server that decide its memory")
    for name in LOWERABLE:
        add_option(group, name)
    return parser
