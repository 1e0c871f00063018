"""Train the demo checkpoint: a small EchoVLM, on simulated studies, from a seed.

    python -m demo.train --output demo/checkpoint

First the image side learns to recognise what frames show, then the decoder to converse about its tokens. A killed training
resumes from its last saved step, and ends with the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from tokenizers import Tokenizer

from demo.checkpoint_files import config_json, train_tokenizer, write_files, write_weights
from demo.training.conversations import Layout, tokenizer_texts
from demo.training.frames import make_frames
from demo.training.images import ImageOptions, ImageSide, encode, train_images
from demo.training.run import Saving, progress_bar
from demo.training.shards import Shard, in_shards
from demo.training.texts import TextOptions, TextSide, train_texts
from demo.truth import Truth
from echovlm_edge.export.model.weights import Parts
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.resources.processors import usable_processors


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of the training; the defaults made the committed checkpoint. `save_every` counts steps and changes no byte."""

    seed: int = 0
    images: ImageOptions = field(default_factory=ImageOptions)
    texts: TextOptions = field(default_factory=TextOptions)
    save_every: int = 50


def train(options: TrainingOptions, output: Path, cache: Path, console: Console) -> None:
    """Train and write the checkpoint to `output`; `cache` keeps simulated frames, and what a killed training resumes from."""
    _be_deterministic()
    torch.set_num_threads(usable_processors())
    config = EchoVLMConfig.from_json(config_json(), "the demo's config")
    frames = make_frames(options.images.frames, cache, console)
    images_state, texts_state, tokens = (cache / name for name in ("images.pt", "texts.pt", "image-tokens.npy"))
    if not images_state.is_file():
        tokens.unlink(missing_ok=True)  # of a training whose state was deleted
    torch.manual_seed(options.seed)
    image_side = ImageSide(config.vision)
    with progress_bar(console) as progress:
        depends_on = {"seed": options.seed, "images": asdict(options.images)}
        saving = Saving(cache, depends_on, options.save_every, progress)
        train_images(image_side, frames, options.images, options.seed, saving)
    encode(image_side, frames, tokens, console)
    tokenizer = train_tokenizer(tokenizer_texts())
    in_shards(_train_texts, options, tokenizer, frames.truths, tokens, console.quiet)
    text_side = TextSide(config.decoder)
    text_side.load_state_dict(torch.load(texts_state, weights_only=True)["model"])
    write_files(output, tokenizer)
    parts = Parts(image_side.vision_encoder, image_side.projector, text_side.decoder)
    write_weights(output, parts, text_side.embedding, config)
    for file in (texts_state, images_state, tokens):
        file.unlink()


def _train_texts(
    shard: Shard, options: TrainingOptions, tokenizer: Tokenizer, truths: Sequence[Truth], tokens: Path, quiet: bool
) -> None:
    """Train the decoder on the image tokens in a file, as one of the processes that share the batches."""
    _be_deterministic()
    config = EchoVLMConfig.from_json(config_json(), "the demo's config")
    torch.manual_seed(options.seed)
    text_side = TextSide(config.decoder)
    depends_on = {"seed": options.seed, "images": asdict(options.images), "texts": asdict(options.texts)}
    with progress_bar(Console(stderr=True, quiet=quiet or not shard.leads)) as progress:
        saving = Saving(tokens.parent, depends_on, options.save_every, progress, shard)
        layout = Layout(tokenizer, config)
        image_tokens = np.load(tokens, mmap_mode="r")
        train_texts(text_side, layout, image_tokens, truths, options.texts, options.seed, saving)


def _be_deterministic() -> None:
    torch.use_deterministic_algorithms(True)  # or gradients of gathered rows are summed in random order
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # a tenth of the time


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    default = TrainingOptions()
    parser = argparse.ArgumentParser(prog="demo.train", description="Train the demo checkpoint on simulated studies.")
    parser.add_argument("--output", type=Path, default=Path("demo/checkpoint"), metavar="DIR")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("build/demo"),
        metavar="DIR",
        help="frames, and what a killed training resumes from",
    )
    parser.add_argument("--seed", type=int, default=default.seed, metavar="N")
    parser.add_argument("--frames", type=int, default=default.images.frames, metavar="N", help="to simulate")
    parser.add_argument("--image-steps", type=int, default=default.images.steps, metavar="N")
    parser.add_argument("--text-steps", type=int, default=default.texts.steps, metavar="N")
    given = parser.parse_args(arguments)
    options = TrainingOptions(
        given.seed,
        replace(default.images, frames=given.frames, steps=given.image_steps),
        replace(default.texts, steps=given.text_steps),
    )

    def command() -> int:
        train(options, given.output, given.cache, Console(stderr=True))
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
