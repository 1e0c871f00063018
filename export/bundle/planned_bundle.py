"""Decide a bundle before a byte of it is written: check the checkpoint, lower each part's graph, give each weight its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.device_bundle import check_plugin
from echovlm_edge.export.graph.lower import StoredWeight, add_best, lower
from echovlm_edge.export.model import weights
from echovlm_edge.export.model.operators import DOMAIN
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.export.targets import Target
from echovlm_edge.export.weights.quantize import CACHE_TYPES, GroupedBlocks, PrecisionPolicy
from echovlm_edge.export.weights.weight_file import WeightFile, lay_out
from echovlm_edge.runtime.backends.bundle_memory import BundleShape, Widths
from echovlm_edge.runtime.bundle.cost_model import cache_token_bytes
from echovlm_edge.runtime.bundle.manifest import (
    TOKEN_EMBEDDING,
    AdapterSource,
    EmbeddingSpec,
    Limits,
    ModelSpec,
    on_gpu,
)
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings

MakeGraphs = Callable[
    [EchoVLMConfig], dict[str, ir.Model]
]  # `traced_parts`, or `sketched_parts` where sizes are enough


@dataclass(frozen=True)
class LoweredPart:
    """A part whose graph is ready and whose weights have their places; they are not written yet."""

    name: str
    precision: str
    model: ir.Model
    stored: dict[str, StoredWeight]
    file: WeightFile


@dataclass(frozen=True)
class PlannedBundle:
    """All that decides a bundle, before a byte of it is written."""

    name: str
    checkpoint: Checkpoint
    settings: PreprocessSettings
    limits: Limits
    parts: list[LoweredPart]
    embedding: WeightFile

    @property
    def adapter(self) -> AdapterSource | None:
        """Return the adapter that is merged into the weights, if any."""
        return self.checkpoint.adapter.source if self.checkpoint.adapter else None

    @property
    def files(self) -> list[WeightFile]:
        """Return the files of weights."""
        return [*(part.file for part in self.parts), self.embedding]

    @property
    def sizes(self) -> dict[str, int]:
        """Return the bytes of each file of weights."""
        return {file.name: file.size for file in self.files}

    def operator_library(self, chosen: Target) -> str | None:
        """Return the native library that the graphs need, as lowered to `chosen`; None if they have none of its operators."""
        needed = any(node.domain == DOMAIN for part in self.parts for node in part.model.graph)
        return chosen.operator_library if needed else None

    def model_spec(self) -> ModelSpec:
        """Return the properties of the model that the runtime needs."""
        decoder, vision = self.checkpoint.config.decoder, self.checkpoint.config.vision
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
            image_token_id=self.checkpoint.config.image_token_id,
            stop_token_ids=self.checkpoint.stop_token_ids(),
            vision_window=vision.window,
        )

    def embedding_spec(self) -> EmbeddingSpec:
        """Return how the token embedding is stored."""
        storage = self.embedding.pieces[0].storage
        if isinstance(storage, GroupedBlocks):
            return EmbeddingSpec("int8", storage.precision.block_size)
        (tensor,) = storage.tensors((1, 1))
        return EmbeddingSpec(tensor.dtype.numpy().name)


def open_checkpoint(options: BuildOptions, progress: Progress) -> Checkpoint:
    """Check the options by themselves, then the checkpoint, then the options against it; this takes seconds at most.

    Raises:
        NotPossibleHere: the checkpoint or an option cannot be used.
    """
    options.check()
    if options.device_plugin:
        check_plugin(options.device_plugin)
    with progress.stage("Reading the checkpoint"):
        checkpoint = Checkpoint(options.checkpoint, options.adapter)
        options.limits(checkpoint.config)
        options.preprocess(checkpoint)
    return checkpoint


def plan(options: BuildOptions, checkpoint: Checkpoint, graphs: MakeGraphs) -> PlannedBundle:
    """Make the parts' graphs, lower them and lay their weights out: everything but the writing.

    Raises:
        NotPossibleHere: the checkpoint's preprocessor or its widths cannot be used.
        ImageTokensOutOfRange: the preprocessor takes no such bound.
    """
    settings = options.preprocess(checkpoint)
    parts = lower_parts(checkpoint, options.policy, options.chosen_target, graphs)
    storage = options.policy.embedding(checkpoint.config.decoder.hidden_size)
    embedding = lay_out(TOKEN_EMBEDDING, [(weights.TOKEN_EMBEDDING, storage)], checkpoint)
    limits = options.limits(checkpoint.config)
    return PlannedBundle(options.model_name(), checkpoint, settings, limits, parts, embedding)


def lower_parts(
    checkpoint: Checkpoint, policy: PrecisionPolicy, chosen: Target, graphs: MakeGraphs
) -> list[LoweredPart]:
    """Make the three parts' graphs without their weights and lower them to the target."""
    sources, lowered = weights.part_weights(checkpoint.config), []
    for name, model in graphs(checkpoint.config).items():
        stored = lower(model, name, sources[name], lambda weight: weight.shape(checkpoint), policy, chosen.rules)
        # TensorRT's builder adds it itself, and a sketch has no outputs.
        if name == "decoder" and on_gpu(chosen.name) and chosen.tensorrt is None and model.graph.outputs:
            add_best(model)
        file = lay_out(f"{name}.data", [(weight.weight, weight.storage) for weight in stored.values()], checkpoint)
        lowered.append(LoweredPart(name, policy.layer(name, "").name, model, stored, file))
    return lowered


def bundle_shape(options: BuildOptions, planned: PlannedBundle) -> BundleShape:
    """Return what decides a server's memory, as `BundleShape.of` will read it in the finished bundle."""
    checkpoint, spec = planned.checkpoint, planned.model_spec()
    return BundleShape(
        target=options.target,
        precision=options.precision,
        native=planned.operator_library(options.chosen_target) is not None,
        weights=sum(part.file.size for part in planned.parts),
        embedding=planned.embedding.size,
        tokenizer=len(checkpoint.tokenizer_json().encode()),
        cache_token=cache_token_bytes(
            spec.num_layers, spec.num_kv_heads, spec.head_dim, CACHE_TYPES[options.cache_type].bitwidth // 8
        ),
        cache_context=None,
        max_sequence=planned.limits.max_sequence,
        most_slots=planned.limits.max_batch if on_gpu(options.target) else None,
        widths=Widths.of(checkpoint.read_json("config.json"), planned.settings),
    )
