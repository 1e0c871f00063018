"""Write the demo model's config, tokenizer and preprocessor in the published layout."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from echovlm_edge.export.model import weights
from echovlm_edge.export.source.checkpoint import INDEX
from echovlm_edge.export.source.config import ARCHITECTURE, EchoVLMConfig

VOCABULARY = 1536
SPECIAL = (
    *("<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
SIDE = 140  # pixels of a frame as the model sees it
# Qwen2's: words with their space, single digits, runs of signs and white space.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def token_id(special: str) -> int:
    """Return the id of a special token; special tokens are at the end of the vocabulary."""
    return VOCABULARY - len(SPECIAL) + SPECIAL.index(special)


def config_json() -> dict[str, Any]:
    """Make the config of a small EchoVLM with the published layer types: four routed experts, two per token."""
    return {
        "architectures": [ARCHITECTURE],
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "hidden_act": "silu",
        "hidden_size": 256,
        "image_token_id": token_id("<|image_pad|>"),
        "intermediate_size": 384,
        "max_position_embeddings": 2048,
        "model_type": "qwen2_vl",
        "moe_intermediate_size": 128,
        "norm_topk_prob": False,
        "num_attention_heads": 8,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_section": [4, 6, 6], "rope_type": "default", "type": "default"},
        "rope_theta": 10000.0,
        "router_aux_loss_coef": 0.02,
        "shared_expert_intermediate_size": 256,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "video_token_id": token_id("<|video_pad|>"),
        "vision_config": {
            "depth": 4,
            "embed_dim": 160,
            "hidden_size": 256,
            "in_chans": 3,
            "mlp_ratio": 2,
            "num_heads": 4,
        },
        "vision_end_token_id": token_id("<|vision_end|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_token_id": token_id("<|vision_pad|>"),
        "vocab_size": VOCABULARY,
    }


def preprocessor_json() -> dict[str, Any]:
    """Make the preprocessor's config: a square frame is resized to 140 x 140 pixels, which are 100 patches and 25 tokens."""
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "max_pixels": SIDE * SIDE,
        "merge_size": 2,
        "min_pixels": 28 * 28 * 4,
        "patch_size": 14,
        "temporal_patch_size": 2,
    }


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Train a byte-level BPE like Qwen2's on the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    size = VOCABULARY - len(SPECIAL)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    missing = size - tokenizer.get_vocab_size()
    if missing:
        raise ValueError(f"the corpus gives {missing} tokens too few for a vocabulary of {VOCABULARY}")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tokenizer


def write_files(folder: Path, tokenizer: Tokenizer) -> None:
    """Write everything except the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    files = {
        "config.json": config_json(),
        "preprocessor_config.json": preprocessor_json(),
        "chat_template.json": {"chat_template": CHAT_TEMPLATE},
        "generation_config.json": {"eos_token_id": [token_id("<|im_end|>"), token_id("<|endoftext|>")]},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(
    folder: Path, parts: weights.Parts, embedding: torch.Tensor, config: EchoVLMConfig, shards: int = 2
) -> None:
    """Write the trained parts as the published tensors, bfloat16, in shards with an index."""
    tensors: dict[str, torch.Tensor] = {"model.embed_tokens.weight": embedding}
    for part, sources in (
        (parts.vision_encoder, weights.vision_encoder_weights(config)),
        (parts.projector, weights.projector_weights(config)),
        (parts.decoder, weights.decoder_weights(config)),
    ):
        values = part.state_dict()
        for name, weight in sources.items():
            tensors.update(_published(weight, values[name], config))
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        chosen = names[number::shards]
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name].detach().to(torch.bfloat16).contiguous() for name in chosen}, folder / file)
        weight_map.update(dict.fromkeys(chosen, file))
    index = {"metadata": {"total_size": 2 * sum(map(torch.numel, tensors.values()))}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _published(weight: weights.Weight, value: torch.Tensor, config: EchoVLMConfig) -> dict[str, torch.Tensor]:
    """Split a parameter into the checkpoint tensors that it is made of."""
    from echovlm_edge.export.source.checkpoint import expected_tensors

    shapes = expected_tensors(config)
    sizes = [shapes[name][weight.axis] for name in weight.tensors]
    pieces = value.split(sizes, weight.axis)
    return {name: piece.reshape(shapes[name]) for name, piece in zip(weight.tensors, pieces, strict=True)}
