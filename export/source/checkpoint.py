"""Read a checkpoint folder in the published layout: config, tensors (lazily), tokenizer and chat template."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from echovlm_edge.export.families.interface import Shapes, linear, rms_norm
from echovlm_edge.export.source.adapter import Adapter
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its shard's header declares it."""

    shape: tuple[int, ...]
    dtype: str  # safetensors' name: F32, F16, BF16
    shard: str
    stored: str  # its name there


class Checkpoint:
    """A checkpoint whose every tensor name and shape has been checked against its config; no tensor is read yet.

    Raises:
        NotPossibleHere: a file is missing or damaged, the architecture is another one, or a tensor is missing,
            surplus or of a wrong shape; the sentence names it.
    """

    def __init__(self, path: Path, adapter: Path | None = None) -> None:
        """Open the folder `path` and check it; the adapter of a second folder is merged into what is read."""
        if not path.is_dir():
            raise NotPossibleHere(f"There is no checkpoint folder {path}: give the folder that holds config.json.")
        self.path = path
        self.config = EchoVLMConfig.from_json(self.read_json("config.json"), str(path / "config.json"))
        self.tensors = self._named(self._headers())
        self._check_tensors()
        self.adapter = Adapter.open(adapter, self._adaptable()) if adapter else None

    def read_json(self, name: str) -> dict[str, Any]:
        """Parse one of the folder's JSON files, which must be there."""
        file = self.path / name
        try:
            parsed = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise NotPossibleHere(
                f"The checkpoint {self.path} has no {name}: copy it from the published one."
            ) from None
        except (OSError, ValueError) as error:
            raise NotPossibleHere(f"{file} cannot be read as JSON ({error}): copy it again.") from None
        if not isinstance(parsed, dict):
            raise NotPossibleHere(f"{file} is not a JSON object: copy it again.")
        return parsed

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """Read one tensor, or some of its rows: in its stored dtype, or where an adapter changes it, merged in float32."""
        if self.adapter is None:
            return self._stored(name, rows)
        replaced = self.adapter.replaced(name, rows)
        return self.adapter.merged(name, self._stored(name, rows) if replaced is None else replaced, rows)

    def _stored(self, name: str, rows: slice | None) -> torch.Tensor:
        shard, stored = self.path / self.tensors[name].shard, self.tensors[name].stored
        try:
            with safe_open(shard, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor(stored) if rows is None else file.get_slice(stored)[rows]
                return tensor
        except (SafetensorError, OSError) as error:
            raise NotPossibleHere(
                f"Tensor {name} cannot be read from {shard} ({error}): copy the shard again."
            ) from None

    def files(self) -> list[str]:
        """List the files that decide the model: config.json and the shards, in the order of their names."""
        return ["config.json", *sorted({info.shard for info in self.tensors.values()})]

    def layout_sha256(self) -> str:
        """Hash the config and every tensor's name, shard, dtype and shape, without reading a weight."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        for name, info in sorted(self.tensors.items()):
            digest.update(f"{name} {info.shard} {info.dtype} {info.shape}\n".encode())
        return digest.hexdigest()

    def identity(self) -> str:
        """Identify what is read without reading a weight: the layout, the shards' sizes and times, and the adapter's hash."""
        stats = {name: (self.path / name).stat() for name in self.files()[1:]}
        files = sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items())
        adapter = [self.adapter.source.sha256] if self.adapter else []
        return hashlib.sha256(json.dumps([self.layout_sha256(), files, *adapter]).encode()).hexdigest()

    def chat_template(self) -> str:
        """Read the Jinja chat template from chat_template.json, chat_template.jinja, or the tokenizer's config."""
        plain = self.path / "chat_template.jinja"
        if plain.is_file():
            return plain.read_text(encoding="utf-8")
        for name in ("chat_template.json", "tokenizer_config.json"):
            if (self.path / name).is_file() and "chat_template" in (found := self.read_json(name)):
                return str(found["chat_template"])
        raise NotPossibleHere(
            f"The checkpoint {self.path} has no chat template: copy chat_template.json next to config.json."
        )

    def tokenizer_json(self) -> str:
        """Return the tokenizer in the tokenizers library's format; made from vocab.json and merges.txt where there is no other."""
        file = self.path / "tokenizer.json"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        if not (self.path / "vocab.json").is_file():
            raise NotPossibleHere(f"The checkpoint {self.path} has no tokenizer.json: copy it from the published one.")
        from transformers import AutoTokenizer

        backend = AutoTokenizer.from_pretrained(self.path).backend_tokenizer
        return str(backend.to_str())

    def stop_token_ids(self) -> tuple[int, ...]:
        """Return the tokens that end a generation, from generation_config.json, else from config.json."""
        if not (self.path / "generation_config.json").is_file():
            return self.config.eos_token_ids
        listed = self.read_json("generation_config.json").get("eos_token_id", self.config.eos_token_ids)
        return tuple(listed) if isinstance(listed, (list, tuple)) else (int(listed),)

    def _shards(self) -> list[str]:
        if (self.path / INDEX).is_file():
            weight_map = self.read_json(INDEX).get("weight_map", {})
            return sorted(set(weight_map.values()))
        if (self.path / SINGLE).is_file():
            return [SINGLE]
        raise NotPossibleHere(f"The checkpoint {self.path} has neither {INDEX} nor {SINGLE}: its weights are missing.")

    def _headers(self) -> Iterator[tuple[str, TensorInfo]]:
        with ExitStack() as stack:
            for shard in self._shards():
                path = self.path / shard
                if not path.is_file():
                    raise NotPossibleHere(f"The checkpoint's shard {path} is missing: copy it from the published one.")
                try:
                    file = stack.enter_context(safe_open(path, framework="pt"))
                    for name in file.keys():  # noqa: SIM118 (a safetensors file is not a mapping)
                        header = file.get_slice(name)
                        yield (
                            _published_name(name),
                            TensorInfo(tuple(header.get_shape()), header.get_dtype(), shard, name),
                        )
                except (SafetensorError, OSError) as error:
                    raise NotPossibleHere(
                        f"The checkpoint's shard {path} is truncated or damaged ({error}): copy it again."
                    ) from None

    def _adaptable(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the tensors that an adapter can change; a tied embedding is two layers' at once."""
        tied = {"lm_head.weight", "model.embed_tokens.weight"} if self.config.decoder.tie_word_embeddings else set()
        return {name: info.shape for name, info in self.tensors.items() if name not in tied}

    def _named(self, headers: Iterable[tuple[str, TensorInfo]]) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for name, info in headers:
            if name in tensors:
                raise NotPossibleHere(
                    f"The checkpoint {self.path} has the tensor {name} twice, in {tensors[name].shard} and {info.shard}: copy its "
                    "shards again."
                )
            tensors[name] = info
        return tensors

    def _check_tensors(self) -> None:
        expected = expected_tensors(self.config)
        for name, shape in expected.items():
            if name not in self.tensors:
                raise NotPossibleHere(f"The checkpoint {self.path} lacks the tensor {name}: copy its shards again.")
            if self.tensors[name].shape != shape:
                raise NotPossibleHere(
                    f"Tensor {name} of {self.path} has shape {list(self.tensors[name].shape)}, "
                    f"config.json asks for {list(shape)}: the two do not belong together."
                )
        tied = {"lm_head.weight"} if self.config.decoder.tie_word_embeddings else set()
        for name in self.tensors:
            if name not in expected and name not in tied:
                raise NotPossibleHere(
                    f"The checkpoint {self.path} has a surplus tensor {name} that EchoVLM does not use."
                )


def expected_tensors(config: EchoVLMConfig) -> dict[str, tuple[int, ...]]:
    """Return every tensor of a published checkpoint with this config, name to shape."""
    vision, decoder = config.vision, config.decoder
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    shapes: Shapes = {"visual.patch_embed.proj.weight": (vision.embed_dim, *patch)}
    for number in range(vision.depth):
        shapes |= _below(f"visual.blocks.{number}", config.family.block_tensors(vision))
    merger = linear("mlp.0", vision.merged_dim, vision.merged_dim) | linear(
        "mlp.2", vision.hidden_size, vision.merged_dim
    )
    shapes |= _below("visual.merger", config.family.merger_norm(vision) | merger)

    width, head = decoder.hidden_size, decoder.head_dim
    rows, kv_rows = decoder.num_attention_heads * head, decoder.num_key_value_heads * head
    shapes["model.embed_tokens.weight"] = (decoder.vocab_size, width)
    for number in range(decoder.num_hidden_layers):
        attention = {
            name: shape
            for part, size in (("q", rows), ("k", kv_rows), ("v", kv_rows))
            for name, shape in linear(f"self_attn.{part}_proj", size, width).items()
        } | linear("self_attn.o_proj", width, rows, bias=False)
        norms = rms_norm("input_layernorm", width) | rms_norm("post_attention_layernorm", width)
        layer = attention | norms | config.family.feed_forward_tensors(decoder)
        shapes |= _below(f"model.layers.{number}", layer)
    shapes |= rms_norm("model.norm", width)
    if not decoder.tie_word_embeddings:
        shapes |= linear("lm_head", decoder.vocab_size, width, bias=False)
    return shapes


def _below(path: str, shapes: Shapes) -> Shapes:
    return {f"{path}.{name}": shape for name, shape in shapes.items()}


def _published_name(stored: str) -> str:
    """Return the name under which EchoVLM was published, where newer files say model.language_model and model.visual."""
    for newer, published in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if stored.startswith(newer):
            return published + stored.removeprefix(newer)
    return stored
