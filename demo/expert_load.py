"""Plot which experts the demo model uses: each expert's share of the tokens, by layer and region.

python -m demo.expert_load --checkpoint demo/checkpoint --output docs/expert-load.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from demo.simulate import simulate
from demo.training.conversations import MOST_FRAMES, draw_exchange
from echovlm_edge.export.model.dual_path_moe import DualPathMoE
from echovlm_edge.export.parity.reference import TorchBackend
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import new_cache
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.tasks import Region
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, patchify
from echovlm_edge.runtime.prompting.prompt import PromptBuilder
from echovlm_edge.runtime.prompting.rotary import MultimodalRotary, vision_angles


def expert_load(checkpoint: Checkpoint, seeds: range) -> dict[Region, NDArray[np.float64]]:
    """Compute the share of all routing choices [layers, experts] by region, over held-out studies' requests and right answers.

    The shares of all experts add up to 1: with four experts and an even load, each has a quarter, although a token uses two.
    """
    from tokenizers import Tokenizer

    config = checkpoint.config
    backend = TorchBackend(checkpoint)
    settings = PreprocessSettings.from_config(checkpoint.read_json("preprocessor_config.json"))
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    merge = config.vision.spatial_merge_size
    prompts = PromptBuilder(tokenizer, checkpoint.chat_template(), config.image_token_id, merge)
    rotary = MultimodalRotary(config.decoder.mrope_section, config.decoder.rope_theta)
    layers = backend.parts.decoder.moe_blocks()
    counts = {region: np.zeros((len(layers), config.decoder.num_experts)) for region in Region}
    region = Region.BREAST

    def record(layer: int) -> object:
        def hook(block: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            assert isinstance(block, DualPathMoE)
            _, _, experts = block.route(inputs[0].flatten(0, -2))
            counts[region][layer] += np.bincount(experts.flatten().numpy(), minlength=config.decoder.num_experts)

        return hook

    for index, block in enumerate(layers):
        block.register_forward_pre_hook(record(index))  # type: ignore[arg-type]
    for seed in seeds:
        study = simulate(seed, 1 + seed % MOST_FRAMES)
        region = study.truth.region
        frames = [patchify(np.repeat(image[..., None], 3, axis=2), settings) for image in study.images]
        angles = [vision_angles(frame.grid, merge, config.vision.head_dim) for frame in frames]
        images = [
            backend.project(backend.encode(frame.values, turned)) for frame, turned in zip(frames, angles, strict=True)
        ]
        asked = draw_exchange(study.truth, len(frames), np.random.default_rng(seed))
        prompt = prompts.build(asked.prompt, [frame.grid for frame in frames])
        answer = np.array(tokenizer.encode(asked.answer, add_special_tokens=False).ids)
        tokens = backend.embed(np.concatenate([prompt.token_ids, answer]))
        tokens[prompt.image_rows] = np.concatenate(images)
        onward = np.tile(np.arange(len(answer)) + prompt.next_position, (3, 1))
        positions = np.concatenate([prompt.positions, onward], axis=1)
        cache = new_cache(backend, len(tokens))
        backend.decode(tokens, rotary.angles(positions), 0, np.array([len(tokens) - 1]), cache)
    return {name: load / load.sum(-1, keepdims=True) for name, load in counts.items()}


def draw(loads: dict[Region, NDArray[np.float64]], output: Path) -> None:
    """Draw a panel per layer: regions down, experts across."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    layers, experts = next(iter(loads.values())).shape
    figure, panels = pyplot.subplots(
        1, layers, figsize=(3.4 * layers, 4), sharey=True, squeeze=False, layout="constrained"
    )
    for layer, panel in enumerate(panels[0]):
        shares = np.stack([load[layer] for load in loads.values()])
        shown = panel.imshow(shares, vmin=0, vmax=0.6, cmap="viridis", aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            panel.text(
                column, row, f"{share:.0%}", ha="center", va="center", color="white" if share < 0.35 else "black"
            )
        panel.set_title(f"layer {layer}")
        panel.set_xticks(range(experts), [f"expert {expert}" for expert in range(experts)], fontsize=8)
        panel.set_yticks(range(len(loads)), [region.value for region in loads])
    figure.colorbar(shown, label="share of the routed tokens")
    figure.savefig(output, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="demo.expert_load", description="Draw which experts the demo model uses.")
    parser.add_argument("--checkpoint", type=Path, default=Path("demo/checkpoint"), metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path("docs/expert-load.png"), metavar="FILE")
    parser.add_argument("--count", type=int, default=350, help="held-out studies (default 350)")
    options = parser.parse_args(arguments)

    def command() -> int:
        loads = expert_load(Checkpoint(options.checkpoint), range(options.count))
        draw(loads, options.output)
        overall = np.mean(list(loads.values()), axis=0)
        print(f"least {overall.min():.1%}, most {overall.max():.1%} of the routed tokens in any layer")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
