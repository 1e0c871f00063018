"""`echovlm-build`: build a bundle of engines from a checkpoint in the published layout.

The steps: open the checkpoint, trace its parts, lower them to the target, write them with the tokenizer into a folder, compare
every stage with the PyTorch model, build the target's engines or leave that to the device, and rename the folder into place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from tokenizers import Tokenizer

from echovlm_edge.export.build_options import (
    CALIBRATION_TOKENS,
    FEEDBACK_WIDTH,
    GPU_BATCH,
    BuildOptions,
    CalibrationOptions,
)
from echovlm_edge.export.bundle.bundle_folder import BundleFolder, bundle_folder, check_output
from echovlm_edge.export.bundle.golden_samples import add_golden_tokens
from echovlm_edge.export.bundle.part import write_part
from echovlm_edge.export.bundle.phrases import MadePhrases, add_phrases, make_phrases, phrase_options
from echovlm_edge.export.bundle.plan import Machine, footprint, print_plan
from echovlm_edge.export.bundle.planned_bundle import PlannedBundle, bundle_shape, open_checkpoint, plan
from echovlm_edge.export.calibration.plan_table import print_calibration_plan
from echovlm_edge.export.calibration.room import calibration_room
from echovlm_edge.export.device_bundle import leave_to_device, with_engines
from echovlm_edge.export.engines.tensorrt import STEPS, EngineOptions, replace_by_engines
from echovlm_edge.export.engines.tensorrt_module import open_tensorrt
from echovlm_edge.export.graph.graph_check import checkable
from echovlm_edge.export.graph.sketch import sketched_parts
from echovlm_edge.export.graph.tracing import traced_parts
from echovlm_edge.export.parity import parity
from echovlm_edge.export.parity.compared_rows import Compared, add_comparison, compared_data, compared_on
from echovlm_edge.export.parity.comparison import compare_formats
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.show import print_summary, versions
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.source.checkpoint_hash import hashing
from echovlm_edge.export.targets import TARGETS
from echovlm_edge.export.weights.kv_calibration import give_cache_scales
from echovlm_edge.export.weights.quantize import BLOCK_SIZES, CACHE_TYPES, PRECISIONS
from echovlm_edge.export.weights.rounding import ROUNDINGS
from echovlm_edge.export.weights.weight_file import write_weights
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.calibration_pictures import CALIBRATION_PICTURES
from echovlm_edge.runtime.bundle.manifest import (
    CHAT_TEMPLATE,
    FORMAT,
    MANIFEST,
    TOKEN_EMBEDDING,
    TOKENIZER,
    Bundle,
    Calibration,
    Manifest,
    Parity,
    Source,
    bundle_id,
)
from echovlm_edge.runtime.bundle.signature import SecretKey, sign_file
from echovlm_edge.runtime.contracts.command import SEVERAL, add_version, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.drafting.bundle_phrases import PHRASES
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings


def build(options: BuildOptions, console: Console) -> Manifest:
    """Build a bundle at `options.output`, atomically; a build that was killed is resumed.

    Raises:
        NotPossibleHere: an option or the checkpoint cannot be used, `output` is taken, the disk is full, or an fp32 stage is out of
            parity.
    """
    options.check()
    check_output(options.output, options.replace)
    chosen = options.chosen_target
    key = SecretKey.read(options.sign) if options.sign else None
    tensorrt = open_tensorrt(chosen.tensorrt) if chosen.tensorrt and chosen.builds_here() else None
    with (
        Progress(console) as progress,
        hashing(open_checkpoint(options, progress)) as (checkpoint, sha256),
        nullcontext(
            make_phrases(options.phrases, checkpoint, progress)
        ) as phrases,  # refused before the long work begins
        calibration_room(options, checkpoint, progress) as room,
    ):
        basis = compared_on(options, checkpoint)
        if room:
            options = replace(options, mixed=room.choose())
        with progress.stage("Tracing"):
            planned = plan(options, checkpoint, traced_parts)
        if room:
            room.round(planned)
        needed = sum(file.bytes for file in planned.files)
        identity = _identity(options, planned, room.identity if room else "")
        rounding_of = room.rounding_of(planned, options.how_to_round) if room else lambda _: options.how_to_round
        with bundle_folder(
            options.output, needed * (2 if tensorrt else 1), identity, replace=options.replace
        ) as folder:
            with progress.stage("Writing weights", total=needed) as advance:
                write_weights(folder.path, planned.files, checkpoint, folder.journal, advance, rounding_of)
            if options.cache_type == "int8":
                with progress.stage("Measuring the KV cache"):
                    calibrate_cache(planned, options)
            with progress.stage("Writing graphs"):
                calibration = room.record(folder.path) if room else None
                manifest = write_graphs(options, planned, folder, sha256.result, calibration, phrases)
            with progress.stage("Comparing with PyTorch"):
                manifest = _with_measurements(manifest, folder, planned, basis, options)
            if tensorrt:
                engines = EngineOptions.of(manifest.limits, planned.settings.max_pixels, planned.settings.patch_size)
                with progress.stage("Building engines", total=STEPS * len(manifest.parts)) as advance:
                    built = replace_by_engines(tensorrt, folder.path, manifest.parts, engines, advance)
                manifest = with_engines(manifest, built, tensorrt)
            elif chosen.on_device:
                manifest = leave_to_device(folder, manifest, chosen, options.device_plugin)
            folder.write_manifest(manifest)
            if key:
                sign_file(folder.path / MANIFEST, key)
    return manifest


def calibrate_cache(planned: PlannedBundle, options: BuildOptions) -> None:
    """Give the decoder's int8 caches their scales, from the PyTorch model on the samples."""
    checkpoint, spec = planned.checkpoint, planned.model_spec()
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    prompts = PromptBuilder(tokenizer, checkpoint.chat_template(), spec.image_token_id, spec.merge_size)
    (decoder,) = (part for part in planned.parts if part.name == "decoder")
    images = parity.samples(planned.settings, options.samples)
    give_cache_scales(decoder.model.graph, TorchBackend(checkpoint, streamed=True), prompts, spec, images)


def measure_parity(
    bundle: Bundle, checkpoint: Checkpoint, basis: Compared, options: BuildOptions
) -> tuple[Parity, ...]:
    """Compare the written bundle, loaded as it will be served, with the PyTorch model.

    Raises:
        NotPossibleHere: an fp32 stage is out of parity.
    """
    reference = TorchBackend(checkpoint, streamed=True)
    prompts, spec = PromptBuilder.from_bundle(bundle), bundle.manifest.model
    stages = tuple(
        parity.compare(
            reference, lambda: OnnxRuntimeBackend(bundle), prompts, spec, basis.images, questions=basis.questions
        )
    )
    if options.precision == "fp32" and options.cache_type == "float32":
        for stage in stages:
            parity.check(stage)
    return stages


def _with_measurements(
    manifest: Manifest, folder: BundleFolder, planned: PlannedBundle, basis: Compared, options: BuildOptions
) -> Manifest:
    """Add the measured parity and the golden tokens; for a GPU target they are those of the graphs, run by ONNX Runtime on this CPU."""
    if options.chosen_target.runs_on_cpu:
        folder.write_manifest(manifest)
        written = Bundle(folder.path)
        measured = measure_parity(written, planned.checkpoint, basis, options)
        return replace(add_golden_tokens(folder, manifest, written), parity=measured)
    with checkable(folder, manifest) as runnable:
        if not runnable:
            return manifest
        measured = measure_parity(runnable, planned.checkpoint, basis, options)
        return replace(add_golden_tokens(folder, manifest, runnable), parity=measured, parity_of="graphs")


def _identity(options: BuildOptions, planned: PlannedBundle, calibration: str) -> str:
    """Identify everything that decides the weights' bytes: a build resumes a killed one only if this is the same."""
    decisive = {
        "checkpoint": planned.checkpoint.identity(),
        "calibration": calibration,
        "options": [options.target, options.precision, options.block_size, options.cache_type, options.rounding],
        "pieces": [(piece.name, piece.bytes) for file in planned.files for piece in file.pieces],
        "toolchain": versions(),
    }
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()


def write_graphs(
    options: BuildOptions,
    planned: PlannedBundle,
    folder: BundleFolder,
    sha256: Callable[[], str],
    calibration: Calibration | None = None,
    phrases: MadePhrases | None = None,
) -> Manifest:
    """Write the graphs and the tokenizer beside the weights that are there; returns what describes the bundle.

    Args:
        options: of the build.
        planned: whose weights are written.
        folder: the bundle's.
        sha256: gives the checkpoint's hash, once it is needed.
        calibration: how the weights were rounded with data, whose pictures' hashes are in the folder.
        phrases: that drafts are guessed from.
    """
    parts = [
        write_part(folder.path, part.name, part.precision, part.model, part.stored, part.file) for part in planned.parts
    ]
    folder.write_text(TOKENIZER, planned.checkpoint.tokenizer_json())
    folder.write_text(CHAT_TEMPLATE, planned.checkpoint.chat_template())
    names = [TOKENIZER, CHAT_TEMPLATE, TOKEN_EMBEDDING, *([CALIBRATION_PICTURES] if calibration else [])]
    if phrases:
        phrases.table.save(folder.path / PHRASES)
        names.append(PHRASES)
    files = tuple(folder.describe(name) for name in names)
    return Manifest(
        format=FORMAT,
        bundle_id=bundle_id((*files, *(file for part in parts for file in part.files))),
        source=Source(planned.name, sha256(), planned.checkpoint.read_json("config.json"), planned.adapter),
        target=options.target,
        precision=options.precision,
        block_size=options.block_size,
        rounding=options.rounding,
        embedding=planned.embedding_spec(),
        model=planned.model_spec(),
        preprocess=planned.settings.as_config(),
        limits=planned.limits,
        parts=tuple(parts),
        files=files,
        toolchain=versions(),
        operator_library=planned.operator_library(options.chosen_target),
        footprint=footprint(bundle_shape(options, planned), planned.limits),
        calibration=calibration,
        phrases=phrases.kept if phrases else None,
    )


def show_plan(options: BuildOptions, console: Console) -> None:
    """Print how much disk and memory the bundle will take and whether it fits this machine; trace and write nothing."""
    with Progress(console) as progress:
        checkpoint = open_checkpoint(options, progress)
        phrases = make_phrases(options.phrases, checkpoint, progress)
        planned = plan(options, checkpoint, sketched_parts)
    files = {**planned.sizes, **({PHRASES: phrases.table.nbytes} if phrases else {})}
    adapted = f" with the adapter {planned.adapter.name}" if planned.adapter else ""
    title = f"{planned.name}{adapted}: {options.precision} for {options.target}, in {options.output}"
    settings, machine = ServeSettings(bundle=options.output), Machine.here(options.output)
    device = options.chosen_target.device if options.chosen_target.on_device else None
    print_plan(title, files, bundle_shape(options, planned), settings, machine, Console(), device)
    if options.calibration:
        print_calibration_plan(options, checkpoint, Console())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    targets = "; ".join(f"{name}: {target.summary}" for name, target in TARGETS.items())
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder in the published layout")
    add(
        "--adapter",
        type=Path,
        metavar="DIR",
        help="folder of a LoRA, rsLoRA or DoRA adapter as PEFT saves it, which is merged into the weights",
    )
    add("--output", type=Path, required=True, metavar="BUNDLE", help="folder to make")
    add("--replace", action="store_true", help="put the new bundle in the place of one that is at --output already")
    add(
        "--name",
        metavar="NAME",
        help="of the model, in the service's answers and in reports (default: the checkpoint's folder, or the one around it where "
        "that is called checkpoint)",
    )
    add("--target", choices=TARGETS, default="cpu", help=f"where it will run ({targets})")
    add(
        "--spell-out",
        action="store_true",
        help="express DualPathMoE in ONNX Runtime's own operators, so that the bundle needs no operator library (targets cpu and cuda; "
        "slower)",
    )
    add("--precision", choices=PRECISIONS, default="int4", help="of the decoder's weights (default int4)")
    add("--block-size", type=int, choices=BLOCK_SIZES, default=128, help="values that share a scale (default 128)")
    add(
        "--rounding",
        choices=ROUNDINGS,
        default="search",
        help="of weights to 4 or 8 bits: search tries scales for each block; plain takes its largest value's, as older versions did "
        "(default search)",
    )
    add(
        "--max-sequence",
        type=int,
        metavar="N",
        help="context in tokens, at most the model's (default: that, up to 4096)",
    )
    add(
        "--image-tokens",
        type=int,
        metavar="N",
        help="visual tokens of a frame at most; larger frames are scaled down (default: the checkpoint's preprocessor; the authors trained "
        "with 196)",
    )
    add(
        "--max-batch",
        type=int,
        metavar="N",
        help=f"sequences that a GPU decodes together, with as many KV caches (default {GPU_BATCH})",
    )
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
    add(
        "--calibrate",
        type=Path,
        metavar="DATA",
        help="round the weights with data: a JSON file of questions and answers about pictures, in the authors' format, or a folder of "
        "pictures, which are asked for reports (no answers; texts give better weights). Takes hours for the published model, see --plan",
    )
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the pictures of --calibrate's and --data's file (default: the file's own)",
    )
    add(
        "--bits",
        type=float,
        metavar="N",
        help="bits that a weight of the decoder's layers may take on average with its scales, such as 4.25: with --calibrate, int4 whose "
        "most sensitive layers have smaller blocks or 8 bits",
    )
    add(
        "--calibration-tokens",
        type=int,
        metavar="N",
        default=CALIBRATION_TOKENS,
        help=f"of pictures and texts to calibrate with, drawn from the data (default {CALIBRATION_TOKENS})",
    )
    add(
        "--full-feedback",
        action="store_true",
        help=f"calibrate layers of more than {FEEDBACK_WIDTH} inputs with error feedback too, not with the search alone: see --plan for "
        "what it takes",
    )
    add_phrases(parser)
    add(
        "--sign",
        type=Path,
        metavar="KEY",
        help="sign the bundle with this secret key of minisign, for echovlm-serve --require-signature (without a password: minisign -G -W)",
    )
    add("--plan", action="store_true", help="print what the bundle will take of disk and memory, and write nothing")
    add(
        "--compare",
        **SEVERAL,
        default=[],
        metavar="FORMAT",
        help="build the checkpoint in each of these formats, as int8, int4/64 or int4/128/plain, in a folder of its own under --output, "
        "and print their bytes, how near their text is to PyTorch's, and their speed here",
    )
    add_comparison(parser)


def _calibration(arguments: argparse.Namespace) -> CalibrationOptions | None:
    if arguments.calibrate is None:
        given = {
            "--images": arguments.images if arguments.data is None else None,
            "--bits": arguments.bits,
            "--full-feedback": arguments.full_feedback or None,
        }
        for option, value in given.items():
            if value is not None:
                raise NotPossibleHere(f"{option} belongs to a calibration: give --calibrate with it.")
        return None
    return CalibrationOptions(
        arguments.calibrate, arguments.images, arguments.calibration_tokens, arguments.bits, arguments.full_feedback
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
            rounding=arguments.rounding,
            max_sequence=arguments.max_sequence,
            max_batch=arguments.max_batch,
            samples=tuple(arguments.sample),
            data=compared_data(arguments),
            kv_cache=arguments.kv_cache,
            device_plugin=arguments.device_plugin,
            name=arguments.name,
            replace=arguments.replace,
            spell_out=arguments.spell_out,
            calibration=_calibration(arguments),
            image_tokens=arguments.image_tokens,
            adapter=arguments.adapter,
            phrases=phrase_options(arguments),
            sign=arguments.sign,
        )
        if arguments.plan:
            show_plan(options, Console(stderr=True))
            return 0
        if arguments.compare:
            compare_formats(options, arguments.compare, build, Console(stderr=True))
            return 0
        manifest = build(options, Console(stderr=True))
        warning = options.chosen_target.warning_about(manifest.operator_library)
        print_summary(manifest, options.output, warning, Console())
        return 0

    return run_command(command)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="echovlm-build", description="Build a bundle of engines from an EchoVLM checkpoint."
    )
    add_version(parser)
    add_options(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
