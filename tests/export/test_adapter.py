"""An adapter that PEFT trained is merged to what PEFT itself merges, on every kind of layer; one that does not fit is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.adapter import Adapter, plain_name
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import Backend
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, ImageInput, Sampling
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support import golden
from tests.support.dicom_files import png

# ms-swift writes its targets as one regular expression.
LINEARS = r"^(model\.layers(?=\.).*\.(q_proj|v_proj|o_proj|up_proj|down_proj|gate|coefficient)|visual\..*\.(qkv|proj|fc1|mlp\.0))$"
STEPS = 3


def named(checkpoint: Checkpoint) -> nn.Module:
    """Make modules with the published names and the checkpoint's values: what PEFT needs of a model."""
    tensors = {name: checkpoint.read(name) for name in checkpoint.tensors}
    root = nn.Module()
    for name, weight in tensors.items():
        path, _, kind = name.rpartition(".")
        if kind != "weight":
            continue
        bias = tensors.get(f"{path}.bias")
        *parents, last = path.split(".")
        place = root
        for parent in parents:
            if parent not in dict(place.named_children()):
                place.add_module(parent, nn.Module())
            place = place.get_submodule(parent)
        place.add_module(last, layer(path, weight, bias))
    return root


def layer(path: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
    if "embed_tokens" in path:
        made: nn.Module = nn.Embedding(*weight.shape)
    elif weight.dim() == 5:
        made = nn.Conv3d(weight.shape[1], weight.shape[0], weight.shape[2:], weight.shape[2:], bias=False)
    elif weight.dim() == 2:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    else:
        made = nn.LayerNorm(weight.shape) if bias is not None else nn.RMSNorm(weight.shape)
    made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return made


def trained(config: LoraConfig, folder: Path, checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    """Train an adapter for a few steps and save it; returns the checkpoint's tensors as PEFT merges it into them."""
    torch.manual_seed(0)
    model = get_peft_model(named(checkpoint), config)  # type: ignore[arg-type]
    train(model)
    model.save_pretrained(str(folder))
    return dict(model.merge_and_unload().state_dict())  # type: ignore[operator]


def train(model: PeftModel) -> None:
    """Train every layer that the adapter changes, each towards outputs of its own."""
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=0.05)
    layers = [
        module
        for module in model.modules()
        if getattr(module, "lora_A", None) or getattr(module, "lora_embedding_A", None)
    ]
    for _ in range(STEPS):
        loss = sum((parameter - 0.1 * torch.randn_like(parameter)).square().mean() for parameter in learnt)
        for each in layers:
            base = each.get_base_layer()  # type: ignore[operator]
            if isinstance(base, nn.Linear):
                output = each(torch.randn(4, base.in_features))
                loss = loss + (output - torch.randn_like(output)).square().mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()


KINDS: dict[str, dict[str, Any]] = {
    "LoRA": {"r": 4, "lora_alpha": 16},
    "rsLoRA": {"r": 4, "lora_alpha": 16, "use_rslora": True},
    "DoRA": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 6},
        "alpha_pattern": {"q_proj": 32, "^visual.blocks.0.attn.proj": 3},
    },
    "saved modules": {"r": 2, "modules_to_save": ["lm_head", "norm"], "bias": "lora_only"},
    "embedding and convolution": {"r": 3, "target_modules": ["embed_tokens", "patch_embed.proj", "lm_head"]},
}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint(golden.CHECKPOINT)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, checkpoint: Checkpoint) -> tuple[Path, Mapping[str, Tensor]]:
    """A LoRA adapter, and what PEFT merges."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    return folder, trained(LoraConfig(target_modules=LINEARS, **KINDS["LoRA"]), folder, checkpoint)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_merged_as_peft_merges_it(kind: str, tmp_path: Path, checkpoint: Checkpoint) -> None:
    expected = trained(LoraConfig(**{"target_modules": LINEARS} | KINDS[kind]), tmp_path, checkpoint)
    merged = Checkpoint(golden.CHECKPOINT, tmp_path)
    assert expected.keys() == checkpoint.tensors.keys()
    changed = 0
    for name in checkpoint.tensors:
        found, before = merged.read(name), checkpoint.read(name)
        assert (found - expected[name]).abs().max() <= 2e-6, name
        changed += not torch.equal(found, before)
        rows = slice(1, max(2, len(before) // 2))
        assert torch.allclose(merged.read(name, rows), found[rows], atol=1e-6), name
    assert merged.adapter
    assert changed == len(merged.adapter.low_rank) + len(merged.adapter.whole) > 2
    assert merged.adapter.source.kind == (kind if kind in ("rsLoRA", "DoRA") else "LoRA")


def test_a_bundle_with_an_adapter_writes_the_tokens_of_pefts_merged_checkpoint(
    build_bundle: Callable[..., Path], adapted: tuple[Path, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    folder, merged = adapted
    saved = Path(shutil.copytree(golden.CHECKPOINT, tmp_path / "merged", ignore=shutil.ignore_patterns("model*")))
    save_file({name: tensor.contiguous() for name, tensor in merged.items()}, saved / "model.safetensors")
    bundle = Bundle(build_bundle(adapter=folder))
    adapter = bundle.manifest.source.adapter
    assert adapter and (adapter.name, adapter.kind) == ("lora", "LoRA")

    def written(backend: Backend | None) -> tuple[int, ...]:
        engine = ReportEngine(bundle, backend) if backend else ReportEngine.open(bundle.path, threads=1)
        *_, last = engine.generate(GenerationRequest("Why?", (ImageInput(png(120, 90)),), Sampling(24)))
        engine.close()
        assert isinstance(last, Finished) and engine.info.adapter == adapter
        return last.token_ids

    here = written(None)
    assert here == written(TorchBackend(Checkpoint(saved)))
    assert here != written(TorchBackend(Checkpoint(golden.CHECKPOINT)))


def test_an_adapter_decides_a_builds_identity(adapted: tuple[Path, Mapping[str, Tensor]], tmp_path: Path) -> None:
    other = Path(shutil.copytree(adapted[0], tmp_path / "other"))
    edit(other, lora_alpha=32)
    identities = {Checkpoint(golden.CHECKPOINT, folder).identity() for folder in (None, adapted[0], other)}
    assert len(identities) == 3
    assert Checkpoint(golden.CHECKPOINT, adapted[0]).identity() in identities


def edit(folder: Path, **entries: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def renamed(folder: Path, old: str, new: str) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({re.sub(old, new, name): tensor for name, tensor in load_file(file).items()}, file)


def resized(folder: Path, part: str) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(name for name in tensors if part in name)
    tensors[name] = torch.zeros(tensors[name].shape[0], tensors[name].shape[1] + 1)
    save_file(tensors, file)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another kind": (lambda folder: edit(folder, peft_type="IA3"), "is of peft_type IA3: only LORA"),
    "base weights changed": (lambda folder: edit(folder, init_lora_weights="pissa_niter_4"), "init_lora_weights pissa"),
    "unknown feature": (lambda folder: edit(folder, alora_invocation_tokens=[1]), "has alora_invocation_tokens"),
    "biases of its own": (lambda folder: edit(folder, lora_bias=True), "has lora_bias, which cannot be merged"),
    "another name": (lambda folder: renamed(folder, "o_proj", "out_proj"), r"out_proj.lora_A.weight .* no tensor of the"),
    "more layers": (lambda folder: renamed(folder, r"layers\.2", "layers.3"), r"Tensor .*layers\.3\..* no tensor of the"),
    "nothing takes it": (
        lambda folder: renamed(folder, r"q_proj\.lora_A", "q_proj.lora_C"),
        r"q_proj\.lora_C\.weight .* belongs to no tensor",
    ),
    "half of a layer": (lambda folder: renamed(folder, r"(0\.self_attn\.q_proj\.lora_)A", r"1.self_attn.k_proj.lora_A"),
                        "not there with the others of its layer"),
    "another width": (lambda folder: resized(folder, "lora_A"), r"has shape \[4, \d+\], the checkpoint's .* asks for"),
    "another rank": (lambda folder: edit(folder, r=8), "has rank 4, and its adapter_config.json says 8"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "has no adapter_model.safetensors"),
    "no config": (lambda folder: (folder / "adapter_config.json").unlink(), "has no adapter_config.json"),
    "damaged": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\0" * 9), "truncated or damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_adapter_that_does_not_fit_is_refused(
    case: str, adapted: tuple[Path, Mapping[str, Tensor]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapted[0], tmp_path / "adapter"))
    change, sentence = REFUSED[case]
    change(folder)
    with pytest.raises(NotPossibleHere, match=sentence) as refused:
        Checkpoint(golden.CHECKPOINT, folder)
    assert str(refused.value).count(". ") == 0


@pytest.mark.parametrize("inner", [False, True], ids=["of the whole model", "of the model inside"])
def test_transformers_names_are_the_published_ones(inner: bool, tmp_path: Path) -> None:
    """Newer transformers say model.language_model and model.visual; an adapter may have been trained on the model inside."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2}
    text = {
        **sizes,
        "num_key_value_heads": 1,
        "vocab_size": 64,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    model = Qwen2VLForConditionalGeneration(Qwen2VLConfig(text_config=text, vision_config=vision))
    names = {
        f"model.{name}" if inner else name: tensor.clone()
        for name, tensor in (model.model if inner else model).state_dict().items()
    }
    published = {re.sub(r"^model\.(language_model|(?=visual))\.?", lambda found: "model." if found[1] else "", name): tensor
                 for name, tensor in names.items()}  # fmt: skip
    assert {"model.layers.0.self_attn.q_proj.weight", "visual.blocks.0.attn.qkv.weight"} <= published.keys()
    adapter = get_peft_model(model.model if inner else model, LoraConfig(r=2, target_modules=["q_proj", "qkv"]))  # type: ignore[arg-type]
    train(adapter)
    adapter.save_pretrained(str(tmp_path))
    expected = {plain_name(name): tensor for name, tensor in adapter.merge_and_unload().state_dict().items()}  # type: ignore[operator]
    opened = Adapter.open(tmp_path, {name: tuple(tensor.shape) for name, tensor in published.items()})
    assert sorted(opened.low_rank) == ["model.layers.0.self_attn.q_proj.weight", "visual.blocks.0.attn.qkv.weight"]
    for name in opened.low_rank:
        merged = opened.merged(name, published[name], None)
        assert (merged - expected[plain_name(name)]).abs().max() < 1e-6 and not torch.equal(merged, published[name])
