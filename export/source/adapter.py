"""Read a LoRA adapter in PEFT's layout, and merge it into a checkpoint's tensors while they are read, one at a time in float32.

The layout is PEFT's `save_pretrained`: adapter_config.json and adapter_model.safetensors. What changes a weight in another way than
LoRA, rsLoRA or DoRA (arXiv 2106.09685, 2312.03732, 2402.09353) is refused by its name.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from echovlm_edge.runtime.bundle.manifest import AdapterSource, describe_file
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
KINDS = {
    "lora_A": "a",
    "lora_B": "b",
    "lora_embedding_A": "a",
    "lora_embedding_B": "b",
    "lora_magnitude_vector": "magnitude",
}
_LOW_RANK = re.compile(rf"(?P<module>.+)\.(?P<kind>{'|'.join(KINDS)})(\.weight)?")
# Entries of adapter_config.json that decide nothing about merging, or that are read here. Any other one must be empty.
KNOWN = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "lora_dtype", "lorap_emb_lr", "lorap_lr_ratio", "megatron_core", "modules_to_save", "peft_type",
    "peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "use_dora",
    "use_rslora",
}  # fmt: skip
# Others, such as pissa, change the base model's weights when training begins.
INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class LowRank:
    """The change of one weight: names of its matrices in the adapter's file, and their factor.

    Attributes:
        a, b: [rank, inputs] and [outputs, rank]; of an embedding the weight's change is the transpose of their product.
        scaling: what the product is multiplied by.
        embedding: whether it is an embedding's.
        magnitude: the norm of each of the weight's rows, for DoRA.
    """

    a: str
    b: str
    scaling: float
    embedding: bool = False
    magnitude: str | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter whose every tensor belongs to a tensor of its checkpoint.

    Attributes:
        path: its folder.
        source: its name and hash.
        low_rank: the changes, by the checkpoint tensor's name.
        whole: names of the adapter's tensors that replace the checkpoint's, by the checkpoint tensor's name.
    """

    path: Path
    source: AdapterSource
    low_rank: Mapping[str, LowRank] = field(repr=False)
    whole: Mapping[str, str] = field(repr=False)

    @classmethod
    def open(cls, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
        """Open an adapter's folder for a checkpoint whose tensors have these shapes.

        Raises:
            NotPossibleHere: a file is missing or damaged, the adapter is of an unsupported kind, or its first tensor that is of no
                tensor of the checkpoint or has another shape; the sentence names it.
        """
        config = _config(path)
        found = _tensors(path)
        low_rank, whole = _assigned(path, config, found, shapes)
        listing = "".join(f"{describe_file(path, name).sha256}  {name}\n" for name in (CONFIG, TENSORS))
        kind: Literal["LoRA", "rsLoRA", "DoRA"] = (
            "DoRA" if config.get("use_dora") else "rsLoRA" if config.get("use_rslora") else "LoRA"
        )
        digest = hashlib.sha256(listing.encode()).hexdigest()
        return cls(path, AdapterSource(path.resolve().name, kind, digest), low_rank, whole)

    def replaced(self, name: str, rows: slice | None) -> torch.Tensor | None:
        """Read the tensor, or some of its rows, that the adapter has in the place of the checkpoint's; None if it has none."""
        return self._read(self.whole[name], rows) if name in self.whole else None

    def merged(self, name: str, weight: torch.Tensor, rows: slice | None) -> torch.Tensor:
        """Merge the adapter into a weight, or into some of its rows; returns float32 of the same shape.

        A weight that the adapter does not change is returned as it is.
        """
        change = self.low_rank.get(name)
        if change is None:
            return weight
        if change.embedding:
            a, b = self._read(change.a, None, columns=rows).float().T, self._read(change.b).float().T
        else:
            # A convolution's kernel is a matrix, too: its b has a kernel of one value.
            a, b = self._read(change.b, rows).float().flatten(1), self._read(change.a).float().flatten(1)
        added = torch.addmm(weight.float().flatten(1), a, b, alpha=change.scaling)
        if change.magnitude is not None:
            norms = torch.linalg.norm(added, dim=1)
            magnitude = self._read(change.magnitude).float().flatten()
            added *= ((magnitude if rows is None else magnitude[rows]) / norms)[:, None]
        return added.view(weight.shape)

    def _read(self, name: str, rows: slice | None = None, columns: slice | None = None) -> torch.Tensor:
        try:
            with safe_open(self.path / TENSORS, framework="pt") as file:
                if columns is not None:
                    part: torch.Tensor = file.get_slice(name)[:, columns]
                else:
                    part = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
                return part
        except (SafetensorError, OSError) as error:
            raise NotPossibleHere(
                f"Tensor {name} cannot be read from {self.path / TENSORS} ({error}): copy the adapter again."
            ) from None


def _config(path: Path) -> Mapping[str, Any]:
    """Read adapter_config.json and refuse what cannot be merged."""
    file = path / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        raise NotPossibleHere(
            f"The adapter {path} has no {CONFIG}: give the folder that PEFT's save_pretrained made."
        ) from None
    except (OSError, ValueError) as error:
        raise NotPossibleHere(f"{file} cannot be read as JSON ({error}): copy it again.") from None
    kind = config.get("peft_type")
    if kind != "LORA":
        raise NotPossibleHere(f"The adapter {path} is of peft_type {kind}: only LORA can be merged.")
    if (how := config.get("init_lora_weights", True)) not in INITIALISATIONS:
        raise NotPossibleHere(
            f"The adapter {path} has init_lora_weights {how}, which changes the base model: save it converted to plain LoRA "
            "(PEFT's path_initial_model_for_weight_conversion)."
        )
    if strange := next((name for name, value in sorted(config.items()) if value and name not in KNOWN), None):
        raise NotPossibleHere(f"The adapter {path} has {strange}, which cannot be merged: train it without.")
    return config


def _tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the adapter's tensors."""
    file = path / TENSORS
    if not file.is_file():
        raise NotPossibleHere(
            f"The adapter {path} has no {TENSORS}: save it with safe_serialization, or copy it from where it was trained."
        )
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise NotPossibleHere(f"{file} is truncated or damaged ({error}): copy the adapter again.") from None


def _assigned(
    path: Path, config: Mapping[str, Any], found: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, LowRank], dict[str, str]]:
    """Assign each of the adapter's tensors to a tensor of the checkpoint."""
    known = {plain_name(name): name for name in shapes}
    modules: dict[str, dict[str, str]] = {}  # the names of a module's matrices by their kind
    whole: dict[str, str] = {}
    for name in sorted(found):
        low_rank = _LOW_RANK.fullmatch(name)
        theirs = f"{low_rank['module']}.weight" if low_rank else re.sub(r"\.(base_layer|modules_to_save)\.", ".", name)
        target = known.get(plain_name(theirs))
        if target is None:
            raise NotPossibleHere(
                f"Tensor {name} of the adapter {path} belongs to no tensor of the checkpoint: is it another model's adapter?"
            )
        if low_rank:
            modules.setdefault(low_rank["module"], {})[low_rank["kind"]] = name
        else:
            _check_shape(path, name, found[name], shapes[target], target)
            _refuse_second(path, name, target, whole)
            whole[target] = name
    changes: dict[str, LowRank] = {}
    for module, kinds in modules.items():
        target = known[plain_name(f"{module}.weight")]
        _refuse_second(path, min(kinds.values()), target, changes)
        changes[target] = _change(path, config, module, kinds, found)
        _check_shapes(path, changes[target], found, shapes[target], target)
    if not changes and not whole:
        raise NotPossibleHere(f"The adapter {path} has no tensors: copy it again.")
    return changes, whole


def _refuse_second(path: Path, name: str, target: str, others: Container[str]) -> None:
    if target in others:
        raise NotPossibleHere(
            f"Tensor {name} of the adapter {path} changes {target} a second time: copy the adapter again."
        )


def _change(
    path: Path, config: Mapping[str, Any], module: str, kinds: Mapping[str, str], found: Mapping[str, tuple[int, ...]]
) -> LowRank:
    """Make the change of one module's weight, whose matrices have these names by their kind."""
    named = {KINDS[kind]: name for kind, name in kinds.items()}
    if named.keys() != {"a", "b", *(("magnitude",) if config.get("use_dora") else ())}:
        raise NotPossibleHere(
            f"Tensor {min(kinds.values())} of the adapter {path} is not there with the others of its layer: copy the adapter again."
        )
    rank = _of_pattern(config, "rank_pattern", module, config.get("r"))
    alpha = _of_pattern(config, "alpha_pattern", module, config.get("lora_alpha"))
    if not all(isinstance(number, int | float) and number > 0 for number in (rank, alpha)):
        raise NotPossibleHere(
            f"{path / CONFIG} has rank {rank} and lora_alpha {alpha} for {module}: give numbers above 0."
        )
    if (there := next(iter(found[named["a"]]), 0)) != rank:
        raise NotPossibleHere(
            f"Tensor {named['a']} of the adapter {path} has rank {there}, and its {CONFIG} says {rank}: the two do not belong "
            "together."
        )
    scaling = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return LowRank(named["a"], named["b"], scaling, "lora_embedding_A" in kinds, named.get("magnitude"))


def _of_pattern(config: Mapping[str, Any], name: str, module: str, otherwise: Any) -> Any:
    """Return a module's own rank or alpha: that of the first pattern that its name ends with, as PEFT matches them."""
    own = module.removeprefix("base_model.model.")
    patterns = config.get(name) or {}
    try:
        return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", own)), otherwise)
    except (re.error, AttributeError):
        raise NotPossibleHere(
            f"The adapter's {CONFIG} has a {name} that is no regular expressions: correct it."
        ) from None


def _check_shapes(
    path: Path, change: LowRank, found: Mapping[str, tuple[int, ...]], shape: tuple[int, ...], target: str
) -> None:
    """Refuse matrices that do not make a change of the checkpoint tensor's shape."""
    rank = found[change.a][0]
    if change.magnitude is not None and change.embedding:
        raise NotPossibleHere(
            f"Tensor {change.magnitude} of the adapter {path} is DoRA of an embedding: train it without."
        )
    if change.embedding:
        wanted: dict[str, tuple[int, ...]] = {change.a: (rank, shape[0]), change.b: (shape[1], rank)}
    else:
        wanted = {change.a: (rank, *shape[1:]), change.b: (shape[0], rank, *(1 for _ in shape[2:]))}
    if change.magnitude is not None:
        kernel = shape[2:]
        wanted[change.magnitude] = (1, shape[0], *(1 for _ in kernel)) if kernel else (shape[0],)
    for name, expected in wanted.items():
        _check_shape(path, name, found[name], expected, target)


def _check_shape(path: Path, name: str, shape: tuple[int, ...], expected: tuple[int, ...], target: str) -> None:
    if shape != expected:
        raise NotPossibleHere(
            f"Tensor {name} of the adapter {path} has shape {list(shape)}, the checkpoint's {target} asks for {list(expected)}: is it "
            "another model's adapter?"
        )


def plain_name(name: str) -> str:
    """Return a tensor's name without the modules around the model's two halves, which versions of transformers and PEFT name differently.

    `model.layers.0…`, `base_model.model.model.language_model.layers.0…` and `language_model.model.layers.0…` are `layers.0…`.
    """
    return re.sub(r"^((base_model|model|language_model)\.)+", "", name)
