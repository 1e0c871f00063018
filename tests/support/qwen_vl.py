"""Make random checkpoints of Qwen2-VL and Qwen2.5-VL with transformers, and let transformers write their texts: the reference for both."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from benchmarks.make_checkpoint import TOKENIZER_FILES, spread
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import Backend, new_cache
from echovlm_edge.runtime.bundle.manifest import ModelSpec
from echovlm_edge.runtime.contracts.request import ImageInput
from echovlm_edge.runtime.engine.model import prompt_embeddings
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import Patches, PreprocessSettings, patchify
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles
from echovlm_edge.runtime.prompting.windows import image_windows
from tests.support import golden

FAMILIES = ("qwen2_5_vl", "qwen2_vl")
NEW_TOKENS = 24
# Sides of the pictures in pixels, height first: whole and partial windows of 112 pixels, and one narrower than a window.
SIZES = ((140, 168), (224, 56), (112, 224))
HIDDEN = 128  # with the other widths, what the GPU kernels take
WINDOW_INNER = 100  # of the vision encoder's SwiGLU: a multiple of no block


def published(family: str) -> dict[str, Any]:
    """Make a config.json of the published files' keys: flat, with old names in vision_config."""
    tokens = json.loads((golden.CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    vision: dict[str, Any] = {"depth": 3, "num_heads": 4, "in_chans": 3, "spatial_patch_size": 14}
    if family == "qwen2_5_vl":
        vision |= {
            "hidden_size": 64,
            "out_hidden_size": HIDDEN,
            "intermediate_size": WINDOW_INNER,
            "hidden_act": "silu",
        }
        vision |= {"window_size": 112, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    else:
        vision |= {"embed_dim": 64, "hidden_size": HIDDEN, "mlp_ratio": 2}
    architecture = {"qwen2_5_vl": "Qwen2_5_VL", "qwen2_vl": "Qwen2VL"}[family]
    return {
        **{key: value for key, value in tokens.items() if key.endswith("token_id")},
        "architectures": [f"{architecture}ForConditionalGeneration"],
        "model_type": family,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "max_position_embeddings": 4096,
        "num_attention_heads": 8,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vision_config": vision,
        "vocab_size": 1024,
    }


def reference(family: str) -> Any:
    """Make transformers' model with random weights of a normal spread, always the same, in float32."""
    import transformers

    text = published(family)
    names = {"in_chans": "in_channels", "spatial_patch_size": "patch_size"}
    vision = {names.get(key, key): value for key, value in text.pop("vision_config").items()}
    kind = text.pop("architectures")[0].removesuffix("ForConditionalGeneration")
    own = {key: text.pop(key) for key in list(text) if key.startswith(("image_", "video_", "vision_"))}
    del text["model_type"]
    config = getattr(transformers, f"{kind}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=False, **own
    )
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).float().eval()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in sorted(model.named_parameters()):
        around, deviation = spread(name, tuple(parameter.shape))
        parameter.data.copy_(around + deviation * torch.randn(parameter.shape, generator=generator))
    return model


def write_checkpoint(family: str, folder: Path, *, newer: bool) -> Path:
    """Write the reference's checkpoint: as transformers saves it, with its config; or (`newer` false) with the published config.

    With `newer`, tensors are called model.language_model… and model.visual…, and the text's config is nested.
    """
    reference(family).save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (golden.CHECKPOINT / name).is_file():
            shutil.copy(golden.CHECKPOINT / name, folder / name)
    if newer:
        file = folder / "model.safetensors"
        save_file({_newer_name(name): tensor for name, tensor in load_file(file).items()}, file)
    else:
        (folder / "config.json").write_text(json.dumps(published(family)), encoding="utf-8")
    return folder


def _newer_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.", 1)


def prompts(checkpoint: Checkpoint) -> PromptBuilder:
    """Make a checkpoint's prompts."""
    config, tokenizer = checkpoint.config, Tokenizer.from_str(checkpoint.tokenizer_json())
    return PromptBuilder(tokenizer, checkpoint.chat_template(), config.image_token_id, config.vision.spatial_merge_size)


@dataclass(frozen=True)
class Case:
    """What transformers computes about some pictures.

    Attributes:
        images: PNG files.
        patches: of each.
        features: of each, after the projector: float32 [visual tokens, hidden_size].
        logits: at every prompt position, float32 [n, vocab_size].
        tokens: written greedily after the prompt, NEW_TOKENS or up to a stop token.
        gap: the smallest difference of the two best logits of any step.
    """

    images: Sequence[bytes]
    patches: Sequence[Patches]
    features: Sequence[NDArray[np.float32]]
    logits: NDArray[np.float32]
    tokens: list[int]
    gap: float


def pictures() -> list[bytes]:
    """Cut a real frame to each of SIZES."""
    with Image.open(golden.FOLDER / "one_image_en.0.png") as frame:
        pixels = np.asarray(frame.convert("RGB"))
    return [_png(np.roll(pixels, 40 * number, axis=1), size) for number, size in enumerate(SIZES)]


def _png(pixels: NDArray[np.uint8], size: tuple[int, int]) -> bytes:
    cut = np.asarray(Image.fromarray(pixels).resize((max(size[1], 240), max(size[0], 240))))[: size[0], : size[1]]
    file = io.BytesIO()
    Image.fromarray(cut).save(file, "PNG")
    return file.getvalue()


def expected(family: str, prompts: PromptBuilder, settings: PreprocessSettings, question: str) -> Case:
    """Run transformers on a prompt about the pictures."""
    images, model = pictures(), reference(family)
    patches = [patchify(decode_image(ImageInput(image))[0].pixels, settings) for image in images]
    prompt = prompts.build(question, [some.grid for some in patches])
    ids = torch.from_numpy(prompt.token_ids)[None]
    inputs = {
        "pixel_values": torch.from_numpy(np.concatenate([some.values for some in patches])),
        "image_grid_thw": torch.tensor([some.grid for some in patches]),
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
    }
    with torch.inference_mode():
        features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        logits = model(input_ids=ids, **inputs).logits[0]
        written = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **inputs,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    best = torch.cat(written.logits).topk(2).values
    tokens = written.sequences[0, ids.shape[1] :].tolist()
    return Case(
        images,
        patches,
        [some.numpy() for some in features],
        logits.numpy(),
        tokens,
        float((best[:, 0] - best[:, 1]).min()),
    )


def stages(
    case: Case, backend: Backend, spec: ModelSpec, prompts: PromptBuilder, question: str
) -> Iterator[tuple[str, Any, Any]]:
    """Yield each stage's name, the reference's values, and what a backend computes on the reference's inputs to it."""
    for some, features in zip(case.patches, case.features, strict=True):
        angles = vision_angles(some.grid, spec.merge_size, spec.vision_head_dim)
        encoded = backend.encode(some.values, angles, image_windows(some.grid, spec.merge_size, spec.vision_window))
        yield "image", features, backend.project(encoded)
    prompt = prompts.build(question, [some.grid for some in case.patches])
    embeddings = prompt_embeddings(backend, prompt, case.features)
    turns = MultimodalRotary(spec.mrope_section, spec.rope_theta).angles(prompt.positions)
    cache = new_cache(backend, len(embeddings) + 8)
    logits = backend.decode(embeddings, turns, 0, np.arange(len(embeddings)), cache)
    yield "prefill", case.logits, np.asarray(logits)
