"""`echovlm-build`: a checkpoint in the published layout becomes a bundle of engines.

Reads like the build: open the checkpoint, trace its parts, lower them to the target, write them beside the tokenizer,
compare every stage with the PyTorch model, build the target's engines or leave that to the device, and put the whole in place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from rich.console import Console
from tokenizers import Tokenizer

from echovlm_edge.export import parity, tracing
from echovlm_edge.export.bundle_folder import BundleFolder, bundle_folder
from echovlm_edge.export.checkpoint import Checkpoint
from echovlm_edge.export.device_bundle import check_plugin, leave_to_device, with_engines
from echovlm_edge.export.engines.tensorrt import STEPS, EngineOptions, replace_by_engines
from echovlm_edge.export.engines.tensorrt_module import open_tensorrt
from echovlm_edge.export.graph_check import checkable
from echovlm_edge.export.kv_calibration import give_cache_scales
from echovlm_edge.export.lower import StoredWeight, lower
from echovlm_edge.export.model import weights
from echovlm_edge.export.part import write_part
from echovlm_edge.export.plan import Machine, footprint, print_plan
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.quantize import BLOCK_SIZES, CACHE_TYPES, PRECISIONS, GroupedBlocks, PrecisionPolicy
from echovlm_edge.export.reference import TorchBackend
from echovlm_edge.export.show import print_summary, versions
from echovlm_edge.export.targets import TARGETS, Target, target
from echovlm_edge.export.weight_file import WeightFile, lay_out, write_weights
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle import (
    CHAT_TEMPLATE,
    FORMAT,
    TOKEN_EMBEDDING,
    TOKENIZER,
    Bundle,
    EmbeddingSpec,
    Limits,
    Manifest,
    ModelSpec,
    Parity,
    Part,
    Source,
    bundle_id,
)
from echovlm_edge.runtime.command import run_command
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings
from echovlm_edge.runtime.memory_model import BundleShape, Widths, cache_token_bytes
from echovlm_edge.runtime.prompt import PromptBuilder
from echovlm_edge.runtime.serve_settings import ServeSettings

DEFAULT_MAX_SEQUENCE = 4096


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
    kv_cache: str | None = None
    device_plugin: Path | None = None

    @property
    def cache_type(self) -> str:
        """Of the KV cache: the one asked for, or the target's own."""
        return self.kv_cache or target(self.target).cache_types[0]


@dataclass(frozen=True)
class LoweredPart:
    """A part whose graph is ready and whose weights have their places: they are still to be written."""

    name: str
    precision: str
    model: ir.Model
    stored: dict[str, StoredWeight]
    file: WeightFile


@dataclass(frozen=True)
class PlannedBundle:
    """All that decides a bundle, before a byte of it is written."""

    checkpoint: Checkpoint
    settings: PreprocessSettings
    parts: list[LoweredPart]
    embedding: WeightFile

    @property
    def files(self) -> list[WeightFile]:
        """The files of weights."""
        return [*(part.file for part in self.parts), self.embedding]

    @property
    def sizes(self) -> dict[str, int]:
        """Their bytes."""
        return {file.name: file.size for file in self.files}


def build(options: BuildOptions, console: Console) -> Manifest:
    """Build a bundle at `options.output`, whole or not at all; a build that was killed is gone on with.

    Raises:
        NotPossibleHere: the checkpoint cannot be used, the disk is full, or an fp32 stage is out of parity.
    """
    chosen = target(options.target)
    tensorrt = open_tensorrt(chosen.tensorrt) if chosen.tensorrt and chosen.builds_here() else None
    with Progress(console) as progress:
        planned = plan(options, progress)
        needed = sum(file.bytes for file in planned.files)
        with bundle_folder(options.output, needed * (2 if tensorrt else 1), _identity(options, planned)) as folder:
            with progress.stage("Writing weights", total=needed) as advance:
                write_weights(folder.path, planned.files, planned.checkpoint, folder.journal, advance)
            if options.cache_type == "int8":
                with progress.stage("Measuring the KV cache"):
                    calibrate_cache(planned, options)
            with progress.stage("Writing graphs"):
                parts = [
                    write_part(folder.path, part.name, part.precision, part.model, part.stored, part.file)
                    for part in planned.parts
                ]
                folder.write_text(TOKENIZER, planned.checkpoint.tokenizer_json())
                folder.write_text(CHAT_TEMPLATE, planned.checkpoint.chat_template())
                manifest = _manifest(options, planned, parts, folder)
            with progress.stage("Comparing with PyTorch"):
                manifest = _with_parity(manifest, folder, planned, options)
            if tensorrt:
                engines = EngineOptions.of(manifest.limits, planned.settings.max_pixels, planned.settings.patch_size)
                with progress.stage("Building engines", total=STEPS * len(parts)) as advance:
                    built = replace_by_engines(tensorrt, folder.path, parts, engines, advance)
                manifest = with_engines(manifest, built, tensorrt)
            elif chosen.on_device:
                manifest = leave_to_device(folder, manifest, chosen, options.device_plugin)
            folder.write_manifest(manifest)
    return manifest


def plan(options: BuildOptions, progress: Progress) -> PlannedBundle:
    """Read, trace, lower and lay out: everything but the writing.

    Raises:
        NotPossibleHere: the checkpoint or an option cannot be used.
    """
    policy = PrecisionPolicy.of(options.precision, options.block_size, options.cache_type)
    chosen = target(options.target)
    chosen.check(options.precision, options.cache_type)
    if options.device_plugin:
        check_plugin(options.device_plugin)
    with progress.stage("Reading the checkpoint"):
        checkpoint = Checkpoint(options.checkpoint)
        settings = PreprocessSettings.from_config(checkpoint.read_json("preprocessor_config.json"))
    with progress.stage("Tracing"):
        parts = lower_parts(checkpoint, policy, chosen)
    storage = policy.embedding(checkpoint.config.decoder.hidden_size)
    embedding = lay_out(TOKEN_EMBEDDING, [(weights.TOKEN_EMBEDDING, storage)], checkpoint)
    return PlannedBundle(checkpoint, settings, parts, embedding)


def lower_parts(checkpoint: Checkpoint, policy: PrecisionPolicy, chosen: Target) -> list[LoweredPart]:
    """Trace the three parts without their weights and lower them to the target."""
    config = checkpoint.config
    parts = weights.parts_without_values(config)
    traced = {
        "vision_encoder": (
            tracing.trace_vision_encoder(config, parts.vision_encoder),
            weights.vision_encoder_weights(config),
        ),
        "projector": (tracing.trace_projector(config, parts.projector), weights.projector_weights(config)),
        "decoder": (tracing.trace_decoder(config, parts.decoder), weights.decoder_weights(config)),
    }
    lowered = []
    for name, (model, sources) in traced.items():
        stored = lower(model, name, sources, lambda weight: weight.shape(checkpoint), policy, chosen.rules)
        file = lay_out(f"{name}.data", [(weight.weight, weight.storage) for weight in stored.values()], checkpoint)
        lowered.append(LoweredPart(name, policy.layer(name, "").name, model, stored, file))
    return lowered


def calibrate_cache(planned: PlannedBundle, options: BuildOptions) -> None:
    """Give the decoder's int8 caches their scales, from the PyTorch model on the samples."""
    checkpoint = planned.checkpoint
    spec = _model_spec(checkpoint)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    prompts = PromptBuilder(tokenizer, checkpoint.chat_template(), spec.image_token_id, spec.merge_size)
    (decoder,) = (part for part in planned.parts if part.name == "decoder")
    images = parity.samples(planned.settings, options.samples)
    give_cache_scales(decoder.model.graph, TorchBackend(checkpoint, streamed=True), prompts, spec, images)


def measure_parity(
    bundle: Bundle, checkpoint: Checkpoint, settings: PreprocessSettings, options: BuildOptions
) -> tuple[Parity, ...]:
    """Compare the written bundle, loaded as it will be served, with the PyTorch model.

    Raises:
        NotPossibleHere: an fp32 stage is out of parity.
    """
    reference = TorchBackend(checkpoint, streamed=True)
    prompts, images = PromptBuilder.from_bundle(bundle), parity.samples(settings, options.samples)
    stages = tuple(
        parity.compare(reference, lambda: OnnxRuntimeBackend(bundle), prompts, bundle.manifest.model, images)
    )
    if options.precision == "fp32" and options.cache_type == "float32":
        for stage in stages:
            parity.check(stage)
    return stages


def _with_parity(manifest: Manifest, folder: BundleFolder, planned: PlannedBundle, options: BuildOptions) -> Manifest:
    """The manifest with the parity of what it describes; of the graphs, by ONNX Runtime on this CPU, where they are for a GPU."""
    if target(options.target).runs_on_cpu:
        folder.write_manifest(manifest)
        return replace(
            manifest, parity=measure_parity(Bundle(folder.path), planned.checkpoint, planned.settings, options)
        )
    with checkable(folder, manifest) as runnable:
        if not runnable:
            return manifest
        measured = measure_parity(runnable, planned.checkpoint, planned.settings, options)
        return replace(manifest, parity=measured, parity_of="graphs")


def _identity(options: BuildOptions, planned: PlannedBundle) -> str:
    """Of all that decides the weights' bytes: what a build that goes on must share with the one that was killed."""
    checkpoint = planned.checkpoint
    shards = {info.shard: (checkpoint.path / info.shard).stat() for info in checkpoint.tensors.values()}
    decisive = {
        "checkpoint": checkpoint.sha256(),
        "shards": sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in shards.items()),
        "options": [options.target, options.precision, options.block_size, options.cache_type],
        "pieces": [(piece.name, piece.bytes) for file in planned.files for piece in file.pieces],
        "toolchain": versions(),
    }
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def _manifest(options: BuildOptions, planned: PlannedBundle, parts: list[Part], folder: BundleFolder) -> Manifest:
    checkpoint = planned.checkpoint
    limits = _limits(options, checkpoint)
    files = tuple(folder.describe(name) for name in (TOKENIZER, CHAT_TEMPLATE, TOKEN_EMBEDDING))
    return Manifest(
        format=FORMAT,
        bundle_id=bundle_id((*files, *(file for part in parts for file in part.files))),
        source=Source(checkpoint.name, checkpoint.sha256(), checkpoint.read_json("config.json")),
        target=options.target,
        precision=options.precision,
        block_size=options.block_size,
        embedding=_embedding_spec(planned.embedding),
        model=_model_spec(checkpoint),
        preprocess=planned.settings.as_config(),
        limits=limits,
        parts=tuple(parts),
        files=files,
        toolchain=versions(),
        operator_library=target(options.target).operator_library,
        footprint=footprint(bundle_shape(options, planned), limits),
    )


def _model_spec(checkpoint: Checkpoint) -> ModelSpec:
    decoder, vision = checkpoint.config.decoder, checkpoint.config.vision
    return ModelSpec(
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
    )


def _embedding_spec(file: WeightFile) -> EmbeddingSpec:
    storage = file.pieces[0].storage
    if isinstance(storage, GroupedBlocks):
        return EmbeddingSpec("int8", storage.precision.block_size)
    (tensor,) = storage.tensors((1, 1))
    return EmbeddingSpec(tensor.dtype.numpy().name)


def _limits(options: BuildOptions, checkpoint: Checkpoint) -> Limits:
    longest = min(DEFAULT_MAX_SEQUENCE, checkpoint.config.decoder.max_position_embeddings)
    return Limits(options.max_sequence or longest, options.max_batch)


def bundle_shape(options: BuildOptions, planned: PlannedBundle) -> BundleShape:
    """What decides a server's memory, as `BundleShape.of` will read it in the finished bundle."""
    checkpoint = planned.checkpoint
    spec = _model_spec(checkpoint)
    return BundleShape(
        target=options.target,
        precision=options.precision,
        native=target(options.target).operator_library is not None,
        weights=sum(part.file.size for part in planned.parts),
        embedding=planned.embedding.size,
        tokenizer=len(checkpoint.tokenizer_json().encode()),
        cache_token=cache_token_bytes(
            spec.num_layers, spec.num_kv_heads, spec.head_dim, CACHE_TYPES[options.cache_type].bitwidth // 8
        ),
        cache_context=None,
        max_sequence=_limits(options, checkpoint).max_sequence,
        widths=Widths.of(checkpoint.read_json("config.json"), planned.settings),
    )


def show_plan(options: BuildOptions, console: Console) -> None:
    """Print what the bundle will take and whether it fits this machine; write nothing."""
    with Progress(console) as progress:
        planned = plan(options, progress)
    title = f"{options.output}: {planned.checkpoint.name}, target {options.target}, {options.precision}"
    settings, machine = ServeSettings(bundle=options.output), Machine.here(options.output)
    print_plan(title, planned.sizes, bundle_shape(options, planned), settings, machine)


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
        "--kv-cache",
        choices=CACHE_TYPES,
        help="of the KV cache: int8 takes a quarter of float32's memory, float16 half and more time on a CPU "
        "(default: float32 on a CPU, float16 on a GPU)",
    )
    add(
        "--device-plugin",
        type=Path,
        metavar="FILE",
        help="TensorRT plugin built for the device, to travel with the bundle",
    )
    add("--plan", action="store_true", help="print what the bundle will take of disk and memory, and write nothing")
    add(
        "--sample",
        type=Path,
        nargs="*",
        action="extend",
        default=[],
        metavar="FILE",
        help="images to measure parity on",
    )


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
            kv_cache=arguments.kv_cache,
            device_plugin=arguments.device_plugin,
        )
        if arguments.plan:
            show_plan(options, Console(stderr=True))
            return 0
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
