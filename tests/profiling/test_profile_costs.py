"""The profiler and the estimates of a build count the same work: what one calls the roofline is the other's."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm_edge.export.config import EchoVLMConfig
from echovlm_edge.export.quantize import PrecisionPolicy
from echovlm_edge.export.roofline import Roofline
from echovlm_edge.export.targets import target
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.profiling.costs import StageCosts

# A bundle's files hold norms and biases too, which the estimate leaves out: much of a tiny model, next to nothing of a real one.
SMALL_PARAMETERS = 0.15


@pytest.fixture
def counted(golden_bundle: Path) -> tuple[StageCosts, Roofline]:
    bundle = Bundle(golden_bundle)
    manifest, costs = bundle.manifest, StageCosts.of(bundle)
    assert costs is not None
    policy = PrecisionPolicy.of(manifest.precision, manifest.block_size)
    config = EchoVLMConfig.from_json(manifest.source.config, "the bundle")
    return costs, Roofline(config, target("cpu"), policy, manifest.limits.max_sequence)


@pytest.mark.parametrize(("tokens", "cached"), [(1, 0), (1, 777), (48, 32), (600, 0), (1025, 300)])
def test_the_decoder_works_as_much(counted: tuple[StageCosts, Roofline], tokens: int, cached: int) -> None:
    ours, theirs = counted[0].prefill(tokens, cached), counted[1].prefill(tokens, cached)
    assert ours.operations == pytest.approx(theirs.operations, rel=1e-9)
    assert theirs.read_bytes <= ours.read_bytes <= (1 + SMALL_PARAMETERS) * theirs.read_bytes


@pytest.mark.parametrize("patches", [16, 80, 1564])
def test_an_image_works_as_much(counted: tuple[StageCosts, Roofline], patches: int) -> None:
    vision, projector = counted[0].vision(patches // 4, 1), counted[0].projector(patches // 4, 1)
    image = counted[1].image(patches)
    assert vision.operations + projector.operations == pytest.approx(image.operations, rel=1e-9)
    read = vision.read_bytes + projector.read_bytes
    assert image.read_bytes <= read <= (1 + SMALL_PARAMETERS) * image.read_bytes


def test_a_graph_is_not_read_with_every_token(counted: tuple[StageCosts, Roofline], golden_bundle: Path) -> None:
    graph, *weights = Bundle(golden_bundle).manifest.part("decoder").files
    assert graph.name.endswith(".onnx") and counted[0].decoder_bytes == sum(file.bytes for file in weights)
