"""The PyTorch model against the authors' own implementation, stage by stage."""

from __future__ import annotations

import numpy as np
import pytest

from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import new_cache
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles
from tests.support import golden

# Float32 sums in another order; the authors' values are around 1.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(golden.CHECKPOINT)


@pytest.fixture(scope="module")
def backend(checkpoint: Checkpoint) -> TorchBackend:
    return TorchBackend(checkpoint)


def test_image_embeddings(case: golden.Golden, checkpoint: Checkpoint, backend: TorchBackend) -> None:
    if not case.images:
        pytest.skip("this case has no image")
    vision = checkpoint.config.vision
    embeddings = [
        backend.project(backend.encode(patches, vision_angles(grid, vision.spatial_merge_size, vision.head_dim)))
        for patches, grid in zip(case.patches(), case.grids, strict=True)
    ]
    np.testing.assert_allclose(np.concatenate(embeddings), case.arrays["image_embeds"], atol=TOLERANCE)


def test_logits_at_every_prompt_position(case: golden.Golden, checkpoint: Checkpoint, backend: TorchBackend) -> None:
    decoder = checkpoint.config.decoder
    embeddings = case.arrays["hidden_states"][0].astype(np.float32)
    angles = MultimodalRotary(decoder.mrope_section, decoder.rope_theta).angles(case.arrays["position_ids"][:, 0])
    cache = new_cache(backend, len(embeddings))
    logits = backend.decode(embeddings, angles, 0, np.arange(len(embeddings)), cache)
    np.testing.assert_allclose(logits, case.arrays["prefill_logits"], atol=TOLERANCE)


def test_dual_path_moe_paths(case: golden.Golden, backend: TorchBackend) -> None:
    import torch

    block = backend.parts.decoder.layers[0].dual_path_moe
    tokens = torch.from_numpy(case.arrays["layer0_ffn_input"].astype(np.float32))
    coefficients, kept, experts = block.route(tokens)
    np.testing.assert_allclose(coefficients.numpy(), case.arrays["dual_path_weights"][0], atol=TOLERANCE)
    probabilities = torch.from_numpy(case.arrays["router_logits"][0]).softmax(-1)
    np.testing.assert_allclose(kept.numpy(), probabilities.gather(1, experts).numpy(), atol=TOLERANCE)
    assert (probabilities.topk(2).indices == experts).all()
    expected = (
        coefficients.numpy()[:, :1] * case.arrays["layer0_moe_output"]
        + coefficients.numpy()[:, 1:] * case.arrays["layer0_dense_output"]
    )
    np.testing.assert_allclose(block(tokens[None])[0].numpy(), expected, atol=TOLERANCE)
