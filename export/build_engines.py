"""`echovlm-build`: a checkpoint in the published layout becomes a bundle of engines.

Reads like the build: open the checkpoint, trace its parts, lower them to the target, write them beside the tokenizer,
compare every stage with the PyTorch model, build the target's engines or leave that to the device, and put the whole in place.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # run as a file: this folder's trace.py must not stand in for the standard library's
    sys.path.pop(0)

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from rich.console import Console

from echovlm_edge.export import parity, trace
from echovlm_edge.export.bundle_folder import BundleFolder, bundle_folder
from echovlm_edge.export.checkpoint import Checkpoint
from echovlm_edge.export.device_bundle import check_plugin, leave_to_device, with_engines
from echovlm_edge.export.engines.tensorrt import STEPS, EngineOptions, replace_by_engines
from echovlm_edge.export.engines.tensorrt_module import open_tensorrt
from echovlm_edge.export.graph_check import checkable
from echovlm_edge.export.lower import StoredWeight, lower
from echovlm_edge.export.model import weights
from echovlm_edge.export.part import stored_bytes, write_part
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.quantize import BLOCK_SIZES, PRECISIONS, PrecisionPolicy
from echovlm_edge.export.reference import TorchBackend
from echovlm_edge.export.show import print_summary, versions
from echovlm_edge.export.targets import TARGETS, Target, target
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle import (
    CHAT_TEMPLATE,
    FORMAT,
    TOKEN_EMBEDDING,
    TOKENIZER,
    Bundle,
    Limits,
    Manifest,
    ModelSpec,
    Parity,
    Part,
    Source,
    bundle_id,
)
from echovlm_edge.runtime.command import run_command
from echovlm_edge.runtime.generate import Model
from echovlm_edge.runtime.preprocess import PreprocessSettings
from echovlm_edge.runtime.prompt import PromptBuilder
from echovlm_edge.runtime.rotary import MultimodalRotary

DEFAULT_MAX_SEQUENCE = 4096
EMBEDDING_ROWS = 8192  # converted at a time


@dataclass(frozen=True)
class BuildOptions:
    """What to build: the command's options."""

    checkpoint: Path
    output: Path
    target: str = "cpu"
    precision: str = "int4"
    block_size: int = 128
    max_sequence: int | None = None
    max_batch: int = 1
    samples: tuple[Path, ...] = ()
    device_plugin: Path | None = None


@dataclass(frozen=True)
class LoweredPart:
    """A part whose graph is ready and whose weights are still to be written."""

    name: str
    precision: str
    model: ir.Model
    stored: dict[str, StoredWeight]


def build(options: BuildOptions, console: Console) -> Manifest:
    """Build a bundle at `options.output`, whole or not at all.

    Raises:
        NotPossibleHere: the checkpoint cannot be used, the disk is full, or an fp32 stage is out of parity.
    """
    policy = PrecisionPolicy.of(options.precision, options.block_size)
    chosen = target(options.target)
    chosen.check_precision(options.precision)
    if options.device_plugin:
        check_plugin(options.device_plugin)
    tensorrt = open_tensorrt(chosen.tensorrt) if chosen.tensorrt and chosen.builds_here() else None
    with Progress(console) as progress:
        with progress.stage("Reading the checkpoint"):
            checkpoint = Checkpoint(options.checkpoint)
            settings = PreprocessSettings.from_config(checkpoint.read_json("preprocessor_config.json"))
        with progress.stage("Tracing"):
            parts = lower_parts(checkpoint, policy, chosen)
        needed = sum(stored_bytes(part.stored) for part in parts) + _embedding_bytes(checkpoint, options.precision)
        with bundle_folder(options.output, needed * (2 if tensorrt else 1)) as folder:
            with progress.stage("Writing weights", total=needed) as advance:
                written = [
                    write_part(folder.path, part.name, part.precision, part.model, part.stored, checkpoint, advance)
                    for part in parts
                ]
                _write_embedding(folder, checkpoint, options.precision, advance)
            folder.write_text(TOKENIZER, checkpoint.tokenizer_json())
            folder.write_text(CHAT_TEMPLATE, checkpoint.chat_template())
            manifest = _manifest(options, checkpoint, settings, written, folder)
            with progress.stage("Comparing with PyTorch"):
                manifest = _with_parity(manifest, folder, checkpoint, settings, options)
            if tensorrt:
                engines = EngineOptions.of(manifest.limits, settings.max_pixels, settings.patch_size)
                with progress.stage("Building engines", total=STEPS * len(written)) as advance:
                    built = replace_by_engines(tensorrt, folder.path, written, engines, advance)
                manifest = with_engines(manifest, built, tensorrt)
            elif chosen.on_device:
                manifest = leave_to_device(folder, manifest, chosen, options.device_plugin)
            folder.write_manifest(manifest)
    return manifest


def lower_parts(checkpoint: Checkpoint, policy: PrecisionPolicy, chosen: Target) -> list[LoweredPart]:
    """Trace the three parts without their weights and lower them to the target."""
    config = checkpoint.config
    parts = weights.parts_without_values(config)
    traced = {
        "vision_encoder": (
            trace.trace_vision_encoder(config, parts.vision_encoder),
            weights.vision_encoder_weights(config),
        ),
        "projector": (trace.trace_projector(config, parts.projector), weights.projector_weights(config)),
        "decoder": (trace.trace_decoder(config, parts.decoder), weights.decoder_weights(config)),
    }
    lowered = []
    for name, (model, sources) in traced.items():
        stored = lower(model, name, sources, lambda weight: weight.shape(checkpoint), policy, chosen.rules)
        lowered.append(LoweredPart(name, policy.layer(name, "").name, model, stored))
    return lowered


def measure_parity(
    bundle: Bundle, checkpoint: Checkpoint, settings: PreprocessSettings, options: BuildOptions
) -> tuple[Parity, ...]:
    """Compare the written bundle, loaded as it will be served, with the PyTorch model.

    Raises:
        NotPossibleHere: an fp32 stage is out of parity.
    """
    spec = bundle.manifest.model
    reference = Model(
        TorchBackend(checkpoint),
        MultimodalRotary(spec.mrope_section, spec.rope_theta),
        spec.vocab_size,
        frozenset(spec.stop_token_ids),
    )
    prompts = PromptBuilder.from_bundle(bundle)
    images = parity.samples(settings, options.samples)
    candidate = OnnxRuntimeBackend(bundle)
    stages = tuple(parity.compare(reference, candidate, prompts, spec.merge_size, spec.vision_head_dim, images))
    if options.precision == "fp32":
        for stage in stages:
            parity.check(stage)
    return stages


def _with_parity(
    manifest: Manifest,
    folder: BundleFolder,
    checkpoint: Checkpoint,
    settings: PreprocessSettings,
    options: BuildOptions,
) -> Manifest:
    """The manifest with the parity of what it describes; of the graphs, by ONNX Runtime on this CPU, where they are for a GPU."""
    if target(options.target).runs_on_cpu:
        folder.write_manifest(manifest)
        return replace(manifest, parity=measure_parity(Bundle(folder.path), checkpoint, settings, options))
    with checkable(folder, manifest) as runnable:
        if not runnable:
            return manifest
        return replace(manifest, parity=measure_parity(runnable, checkpoint, settings, options), parity_of="graphs")


def _manifest(
    options: BuildOptions,
    checkpoint: Checkpoint,
    settings: PreprocessSettings,
    parts: list[Part],
    folder: BundleFolder,
) -> Manifest:
    decoder, vision = checkpoint.config.decoder, checkpoint.config.vision
    files = tuple(folder.describe(name) for name in (TOKENIZER, CHAT_TEMPLATE, TOKEN_EMBEDDING))
    return Manifest(
        format=FORMAT,
        bundle_id=bundle_id((*files, *(file for part in parts for file in part.files))),
        source=Source(checkpoint.name, checkpoint.sha256(), checkpoint.read_json("config.json")),
        target=options.target,
        precision=options.precision,
        block_size=options.block_size,
        embedding_dtype=_embedding_dtype(options.precision).name,
        model=ModelSpec(
            hidden_size=decoder.hidden_size,
            num_layers=decoder.num_hidden_layers,
            num_kv_heads=decoder.num_key_value_heads,
            head_dim=decoder.head_dim,
            vocab_size=decoder.vocab_size,
            mrope_section=decoder.mrope_section,
            rope_theta=decoder.rope_theta,
            vision_head_dim=vision.head_dim,
            merge_size=vision.spatial_merge_size,
            image_token_id=checkpoint.config.image_token_id,
            stop_token_ids=checkpoint.stop_token_ids(),
        ),
        preprocess=settings.as_config(),
        limits=Limits(
            max_sequence=options.max_sequence or min(DEFAULT_MAX_SEQUENCE, decoder.max_position_embeddings),
            max_batch=options.max_batch,
        ),
        parts=tuple(parts),
        files=files,
        toolchain=versions(),
        operator_library=target(options.target).operator_library,
    )


def _write_embedding(folder: BundleFolder, checkpoint: Checkpoint, precision: str, advance: object) -> None:
    table, dtype = weights.TOKEN_EMBEDDING.read(checkpoint).numpy(), _embedding_dtype(precision)
    with (folder.path / TOKEN_EMBEDDING).open("wb") as file:
        for start in range(0, len(table), EMBEDDING_ROWS):
            rows = table[start : start + EMBEDDING_ROWS].astype(dtype).tobytes()
            file.write(rows)
            advance(len(rows))  # type: ignore[operator]


def _embedding_dtype(precision: str) -> np.dtype[np.floating]:
    return np.dtype(np.float32 if precision == "fp32" else np.float16)


def _embedding_bytes(checkpoint: Checkpoint, precision: str) -> int:
    decoder = checkpoint.config.decoder
    return decoder.vocab_size * decoder.hidden_size * _embedding_dtype(precision).itemsize


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    targets = "; ".join(f"{name}: {target.summary}" for name, target in TARGETS.items())
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder in the published layout")
    add("--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    add("--target", choices=TARGETS, default="cpu", help=f"where it will run ({targets})")
    add("--precision", choices=PRECISIONS, default="int4", help="of the decoder's weights (default int4)")
    add("--block-size", type=int, choices=BLOCK_SIZES, default=128, help="values that share a scale (default 128)")
    add("--max-sequence", type=int, metavar="N", help="context in tokens (default: the model's, at most 4096)")
    add("--max-batch", type=int, default=1, metavar="N", help="sequences decoded together (default 1)")
    add(
        "--device-plugin",
        type=Path,
        metavar="FILE",
        help="TensorRT plugin built for the device, to travel with the bundle",
    )
    add("--sample", type=Path, nargs="*", default=[], metavar="FILE", help="images to measure parity on")


def run(arguments: argparse.Namespace) -> int:
    """Build as the parsed options say; returns the command's exit code."""

    def command() -> int:
        options = BuildOptions(
            checkpoint=arguments.checkpoint,
            output=arguments.output,
            target=arguments.target,
            precision=arguments.precision,
            block_size=arguments.block_size,
            max_sequence=arguments.max_sequence,
            max_batch=arguments.max_batch,
            samples=tuple(arguments.sample),
            device_plugin=arguments.device_plugin,
        )
        manifest = build(options, Console(stderr=True))
        print_summary(manifest, options.output, target(options.target).warning)
        return 0

    return run_command(command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="echovlm-build", description="Build a bundle of engines from an EchoVLM checkpoint."
    )
    add_options(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
