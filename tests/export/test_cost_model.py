"""The one count of bytes and operations, compared with what stands in the traced graphs and in a bundle's files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import onnx_ir as ir
import pytest

from echovlm_edge.export.model.operators import DOMAIN
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.runtime.bundle.cost_model import CostModel, ModelShape, Storage
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK, Bundle
from tests.support.traces import shared_parts

CONFIG = json.loads((Path(__file__).parents[2] / "demo" / "checkpoint" / "config.json").read_text())
ONE_BYTE = Storage(1, 1, 1, 1, 1, 1, cache_token=1)
MODEL = CostModel(ModelShape.of(CONFIG), ONE_BYTE)
# A bundle's files hold norms and biases too, which are not counted: much of a tiny model, next to nothing of a real one.
SMALL_PARAMETERS = 0.15


@pytest.fixture(scope="module")
def graphs() -> dict[str, ir.Model]:
    return shared_parts(EchoVLMConfig.from_json(CONFIG, "the demo's config"))


PRODUCTS = (
    "Linear",
    "MLP",
    "DualPathMoE",
)  # of their input's width; attention has queries, keys and values side by side there


def sizes(value: ir.Value | None, bound: Mapping[str, int]) -> list[int]:
    """A value's shape, its varying dimensions bound to numbers."""
    assert value is not None and value.shape is not None
    return [size if isinstance(size, int) else bound[str(size)] for size in value.shape]


def counted(graph: ir.Model, bound: Mapping[str, int], cached: int = 0) -> Iterator[int]:
    """The operations of each node that has products: a multiply-add is two."""
    for node in graph.graph:
        if node.domain != DOMAIN:
            continue
        *lead, width = sizes(node.inputs[0] if node.op_type in PRODUCTS else node.outputs[0], bound)
        match node.op_type:
            case "Linear":
                yield 2 * prod(lead) * prod(sizes(node.inputs[1], bound))
            case "MLP":
                yield 2 * prod(lead) * sum(prod(sizes(weight, bound)) for weight in node.inputs[1::2])
            case "DualPathMoE":
                dense, shared, *experts = node.attributes["group_widths"].as_ints()
                used = dense + shared + sum(experts[: node.attributes["top_k"].as_int()])
                yield 2 * prod(lead) * 3 * width * used  # gate, up and down
            case "SelfAttention":
                yield 2 * 2 * prod(lead) * lead[-1] * width  # scores, and the values that they weigh
            case "CachedAttention":
                yield sum(2 * 2 * width * (cached + place) for place in range(1, lead[-1] + 1))
            case other:
                raise AssertionError(f"what does {other} compute?")


@pytest.mark.parametrize("patches", [16, 80, 1564])
def test_the_image_side_computes_what_its_graphs_hold(graphs: dict[str, ir.Model], patches: int) -> None:
    (merged,) = {str(node.outputs[0].shape[0]) for node in graphs["projector"].graph if node.op_type == "Linear"}  # type: ignore[index]
    vision = sum(counted(graphs["vision_encoder"], {"patch_count": patches}))
    projector = sum(counted(graphs["projector"], {merged: patches // 4}))
    tokens = patches // 4
    assert MODEL.vision(tokens).operations == pytest.approx(vision, rel=1e-12)
    assert MODEL.projector(tokens).operations == pytest.approx(projector, rel=1e-12)
    assert MODEL.vision(7 * tokens, 7).operations == pytest.approx(7 * vision, rel=1e-12)
    assert MODEL.projector(7 * tokens, 7).operations == pytest.approx(7 * projector, rel=1e-12)


@pytest.mark.parametrize(("tokens", "cached"), [(1, 0), (1, 777), (48, 32), (PREFILL_CHUNK, 300)])
def test_a_pass_of_the_decoder_computes_what_its_graph_holds(
    graphs: dict[str, ir.Model], tokens: int, cached: int
) -> None:
    found = sum(
        counted(graphs["decoder"], {"batch": 1, "sequence": tokens, "batch*sequence": tokens, "rows": 1}, cached)
    )
    assert MODEL.decoder_pass(tokens, cached).operations == pytest.approx(found, rel=1e-12)


def test_every_weight_of_the_graphs_is_counted_once(graphs: dict[str, ir.Model]) -> None:
    for part, graph in graphs.items():
        matrices = sum(
            prod(sizes(value, {}))
            for node in graph.graph
            if node.domain == DOMAIN and node.op_type in PRODUCTS
            for value in (node.inputs[5:8] if node.op_type == "DualPathMoE" else node.inputs[1::2])
        )
        assert MODEL.weight_bytes()[part] == matrices, part


def test_a_prompt_is_its_chunks_and_a_text_is_its_tokens() -> None:
    passes = [MODEL.decoder_pass(PREFILL_CHUNK, 300), MODEL.decoder_pass(1, 300 + PREFILL_CHUNK)]
    assert MODEL.prefill(PREFILL_CHUNK + 1, 300) == passes[0] + passes[1]
    assert MODEL.decode(3, 40) == MODEL.decoder_pass(1, 40) + MODEL.decoder_pass(1, 41)
    assert MODEL.decode(1, 40).operations == 0, "prefill's logits give the first token"


def test_experts_that_no_token_chose_are_not_read() -> None:
    shape = MODEL.shape
    one, many = MODEL.moe_weights_read(1), MODEL.moe_weights_read(500)
    assert one == shape.always_weights + shape.chosen * shape.expert_weights
    assert many == pytest.approx(shape.moe_weights)
    assert one < MODEL.moe_weights_read(2) < one + shape.chosen * shape.expert_weights
    assert replace(MODEL, every_expert=True).moe_weights_read(1) == shape.moe_weights


def test_a_mask_reads_the_cache_to_its_end() -> None:
    masked = replace(MODEL, cache_capacity=2048)
    more = masked.decoder_pass(1, 99), MODEL.decoder_pass(1, 99)
    assert more[0].read_bytes - more[1].read_bytes == 2048 - 100
    assert more[0].operations > more[1].operations


def test_a_bundle_reads_its_files(golden_bundle: Path) -> None:
    """All of a part's weights, but not the graph, which is read once."""
    manifest = Bundle(golden_bundle).manifest
    model = CostModel.of(manifest)
    assert model is not None
    for part in manifest.parts:
        graph, *weights = part.files
        assert graph.name.endswith(".onnx")
        stored = model.weight_bytes()[part.name]
        assert stored == pytest.approx(sum(file.bytes for file in weights))
    four = Storage(
        4, 4, 4, 4, 4, 4, cache_token=4 * 2 * model.shape.layers * model.shape.kv_heads * model.shape.head_dim
    )
    bare = replace(model, storage=four)  # the golden bundle is float32
    assert model.storage.cache_token == four.cache_token
    for cost, least in (
        (model.vision(20), bare.vision(20)),
        (model.projector(20), bare.projector(20)),
        (model.prefill(600, 32), bare.prefill(600, 32)),
    ):
        assert cost.operations == least.operations
        assert least.read_bytes <= cost.read_bytes <= (1 + SMALL_PARAMETERS) * least.read_bytes


def test_a_bundle_without_its_config_has_no_costs(golden_bundle: Path) -> None:
    manifest = Bundle(golden_bundle).manifest
    assert CostModel.of(replace(manifest, source=replace(manifest.source, config={}))) is None


def test_keys_that_the_published_config_leaves_out_are_qwens() -> None:
    shape = ModelShape.of({"vision_config": {"in_chans": 1, "spatial_patch_size": 7}, "head_dim": None})
    assert (shape.vision_width, shape.vision_depth, shape.vision_mlp, shape.merged) == (1280, 32, 5120, 4)
    assert (shape.patch_values, shape.head_dim) == (1 * 2 * 7 * 7, 128)
