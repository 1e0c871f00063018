"""Stage `eager`: our PyTorch model in bfloat16 on the same GPU, with random weights that are made there."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.gpu_check.figures import EagerFigures, EagerSteps
from benchmarks.gpu_check.setting import LeftOut, Setting
from echovlm_edge.runtime.bundle.cost_model import ModelShape
from echovlm_edge.runtime.imaging.preprocess import patch_grid
from echovlm_edge.runtime.profiling.workloads import PREPROCESS
from echovlm_edge.runtime.prompting.rotary import vision_angles

if TYPE_CHECKING:
    import torch

    from echovlm_edge.export.model.decoder import Decoder

WARM_UPS = 2
OF_THE_FREE = 0.85  # of the GPU's free memory that the model may take
VALUE_BYTES = 2  # of bfloat16


def run(setting: Setting, keep: Callable[[EagerFigures], None]) -> None:
    """Time vision, prefill and steps eagerly, then a step of a short decoder with and without torch.compile.

    Raises:
        LeftOut: PyTorch has no CUDA here.
    """
    import torch

    if not torch.cuda.is_available() and not setting.rehearsal:
        raise LeftOut(
            f"The installed PyTorch {torch.__version__} sees no GPU: install one with CUDA to compare with it."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.inference_mode(), device:
        vision = vision_seconds(setting, device)
        found = whole_decoder(setting, device, vision, keep)
        gc.collect()  # before another decoder is made
        short_decoder(setting, device, found, keep)


def whole_decoder(
    setting: Setting, device: torch.device, vision: float, keep: Callable[[EagerFigures], None]
) -> EagerFigures:
    """Time prefill and steps of the decoder, of as many layers as fit."""
    import torch

    decoder, layers = random_decoder(setting, device, None)
    workload = setting.sizes.workloads[0]
    tokens = workload.text_tokens + workload.frames * workload.frame_tokens
    prefill = pass_seconds(decoder, setting, 1, tokens, 0, device)
    found = EagerFigures(torch.__version__, layers, vision, tokens, prefill)
    keep(found)
    for sequences in setting.sizes.sequences:
        steps = EagerSteps(sequences, pass_seconds(decoder, setting, sequences, 1, setting.sizes.cached, device))
        found = replace(found, steps=(*found.steps, steps))
        keep(found)
    return found


def short_decoder(
    setting: Setting, device: torch.device, found: EagerFigures, keep: Callable[[EagerFigures], None]
) -> None:
    """Time a step of a short decoder, with and without torch.compile, which takes too long for all layers."""
    decoder, layers = random_decoder(setting, device, setting.sizes.layers[1])
    found = replace(
        found, few_layers=layers, few_seconds=pass_seconds(decoder, setting, 1, 1, setting.sizes.cached, device)
    )
    keep(found)
    if setting.rehearsal:
        keep(replace(found, compiled_reason="a rehearsal compiles nothing"))
        return
    try:
        decoder.compile()
        keep(replace(found, compiled_seconds=pass_seconds(decoder, setting, 1, 1, setting.sizes.cached, device)))
    except Exception as error:  # of any of the compiler's many parts
        reason = str(error).strip().partition("\n")[0]
        keep(replace(found, compiled_reason=f"torch.compile failed ({type(error).__name__}: {reason})"))


def vision_seconds(setting: Setting, device: torch.device) -> float:
    """Time vision encoder and projector on a frame of the first workload."""
    import torch

    from echovlm_edge.export.model.projector import Projector
    from echovlm_edge.export.model.vision_encoder import VisionEncoder
    from echovlm_edge.export.source.config import EchoVLMConfig

    config, workload = EchoVLMConfig.from_json(setting.config, "config").vision, setting.sizes.workloads[0]
    with torch.device("meta"):
        encoder, projector = VisionEncoder(config), Projector(config)
    for part in (encoder, projector):
        fill(part, device)
    grid = patch_grid(workload.height // 28 * 28, workload.width // 28 * 28, PREPROCESS)
    angles = vision_angles(grid, config.spatial_merge_size, config.head_dim)
    cos, sin = (torch.from_numpy(table).to(device, torch.bfloat16) for table in (angles.cos, angles.sin))
    patches = torch.randn(len(cos), config.patch_values, dtype=torch.bfloat16)
    return median(lambda: projector(encoder(patches, cos, sin)), device, setting.sizes.runs)


def random_decoder(setting: Setting, device: torch.device, layers: int | None) -> tuple[Decoder, int]:
    """Make a decoder of so many layers; by default of all, or as many as fit the GPU's memory."""
    import torch

    from echovlm_edge.export.model.decoder import Decoder
    from echovlm_edge.export.source.config import EchoVLMConfig

    shape = ModelShape.of(setting.config)
    if layers is None:
        free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else 1 << 40
        layer = VALUE_BYTES * (shape.attention_weights + shape.moe_weights)
        layers = min(shape.layers, int((OF_THE_FREE * free - VALUE_BYTES * shape.head_weights) // layer))
        if layers < 1:
            raise LeftOut(
                f"PyTorch's model needs {layer / 1e9:.1f} GB of the GPU's memory for one layer: close other programs."
            )
    config = EchoVLMConfig.from_json({**setting.config, "num_hidden_layers": layers}, "config")
    with torch.device("meta"):
        decoder = Decoder(config.decoder)
    fill(decoder, device)
    return decoder, layers


def fill(part: torch.nn.Module, device: torch.device) -> None:
    """Give a part random weights on the device: rows of unit gain, norms of 1, biases of 0."""
    import torch

    part.to(torch.bfloat16).to_empty(device=device).eval().requires_grad_(False)
    for name, values in part.named_parameters():
        if values.dim() > 1:
            values.normal_(0, values.shape[-1] ** -0.5)
        else:
            values.fill_(1.0 if "norm" in name or "ln_q.weight" in name else 0.0)


def pass_seconds(
    decoder: Decoder, setting: Setting, sequences: int, tokens: int, past: int, device: torch.device
) -> float:
    """Time random tokens of some sequences after `past` ones, and the choice of the likeliest next; the caches are made before."""
    import torch

    shape, half = ModelShape.of(setting.config), torch.bfloat16
    cache = (sequences, shape.kv_heads, past + tokens, shape.head_dim)
    keys, values = ([torch.zeros(cache, dtype=half) for _ in decoder.layers] for _ in range(2))
    angles = torch.ones(sequences, tokens, shape.head_dim // 2, dtype=half)
    x = torch.randn(sequences, tokens, shape.hidden, dtype=half)
    before, rows = torch.full((sequences,), past), torch.arange(1, sequences + 1) * tokens - 1
    return median(
        lambda: decoder(x, angles, angles, before, rows, keys, values)[0].argmax(-1), device, setting.sizes.runs
    )


def median(call: Callable[[], object], device: torch.device, runs: int) -> float:
    """Time a call until the device has done it."""
    import torch

    taken = []
    for _ in range(WARM_UPS + runs):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[WARM_UPS:])
