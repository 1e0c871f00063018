"""A calibration's way through the vision encoder of EchoVLM V2's family, whose blocks attend within windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.make_checkpoint import make_checkpoint
from echovlm_edge.export.calibration.passage.linears import Inputs, Linears
from echovlm_edge.export.calibration.passage.parallel import workers
from echovlm_edge.export.calibration.passage.texts import Picture
from echovlm_edge.export.calibration.passage.vision_pass import VisionPass
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.source.config import VisionConfig
from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import Patches, PreprocessSettings, patchify
from echovlm_edge.runtime.prompting.rotary import vision_angles
from echovlm_edge.runtime.prompting.windows import image_windows
from tests.support import qwen_vl


class Seen:
    """A visitor that changes nothing: it keeps the names, and the width of their inputs."""

    def __init__(self) -> None:
        self.widths: dict[str, int] = {}

    def __call__(self, linears: Linears, inputs: Inputs) -> None:
        (width,) = {rows.shape[1] for rows in inputs()}
        self.widths |= dict.fromkeys(linears.weights, width)

    def resume(self, names: object) -> bool:
        return False

    def enter(self, layer: int, power: float) -> None:
        pass


def encode(reference: TorchBackend, image: Patches, vision: VisionConfig) -> Floats:
    merge = vision.spatial_merge_size
    angles = vision_angles(image.grid, merge, vision.head_dim)
    return reference.encode(image.values, angles, image_windows(image.grid, merge, vision.window))


def test_pictures_have_the_embeddings_of_the_whole_model(tmp_path: Path) -> None:
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "checkpoint", qwen_vl.published("qwen2_5_vl")))
    vision, settings = checkpoint.config.vision, PreprocessSettings()
    images = [patchify(decode_image(ImageInput(image))[0].pixels, settings) for image in qwen_vl.pictures()]
    seen, pictures = Seen(), [Picture(str(number), patches) for number, patches in enumerate(images)]
    with workers(1) as pool:
        found = VisionPass(checkpoint, tmp_path, pool, seen).run(pictures, tmp_path / "pictures")
        reference = TorchBackend(checkpoint)
        expected = [reference.project(encode(reference, image, vision)) for image in images]
    whole = np.concatenate(expected)
    np.testing.assert_allclose(found.read(slice(0, found.count)).numpy(), whole, atol=1e-5 * np.abs(whole).max())
    assert seen.widths["visual.blocks.2.mlp.down_proj.weight"] == vision.mlp_dim == 128
    assert seen.widths["visual.blocks.0.mlp.up_proj.weight"] == vision.embed_dim
