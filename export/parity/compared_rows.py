"""What a build compares with the PyTorch model: its sample images, or questions that are drawn from a data set."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from echovlm_edge.export.build_options import COMPARED_ROWS, BuildOptions, ComparedData
from echovlm_edge.export.parity.parity import Question, Sample, samples
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.contracts.image_path import read_image
from echovlm_edge.runtime.contracts.request import FrameSelection
from echovlm_edge.runtime.evaluation.data.rows import Row, read_rows
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings, patchify
from echovlm_edge.runtime.prompting.prompt import PromptBuilder


@dataclass(frozen=True)
class Compared:
    """The images, and what is asked about them; without questions each image has a prompt of its own."""

    images: Sequence[Sample]
    questions: Sequence[Question] = ()


def add_comparison(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `echovlm-build` that say what is compared."""
    add = parser.add_argument
    add(
        "--sample",
        type=Path,
        nargs="*",
        action="extend",
        default=[],
        metavar="FILE",
        help="images to measure parity on",
    )
    add(
        "--data",
        type=Path,
        metavar="FILE.json",
        help="measure parity on questions of yours about pictures, in the authors' format, instead of sample images",
    )
    add(
        "--data-rows",
        type=int,
        default=COMPARED_ROWS,
        metavar="N",
        help=f"how many of them, drawn from the file (default {COMPARED_ROWS})",
    )


def compared_data(arguments: argparse.Namespace) -> ComparedData | None:
    """Read `--data`, with the folder of its pictures; None without it."""
    return ComparedData(arguments.data, arguments.images, arguments.data_rows) if arguments.data else None


def compared_on(options: BuildOptions, checkpoint: Checkpoint) -> Compared:
    """Read what a build compares on, before its work.

    Raises:
        InvalidInput: no row of the data can be asked, a drawn row's picture cannot be read, or its question holds a reserved token.
        NotPossibleHere: a sample image cannot be read.
    """
    settings = PreprocessSettings.from_config(checkpoint.read_json("preprocessor_config.json"))
    if options.data is None:
        return Compared(samples(settings, options.samples))
    images, questions = list[Sample](), list[Question]()
    prompts = _prompts(checkpoint)
    for row in drawn(options.data):
        name = f"row {row.number}"
        shown = [frame for path in row.pictures for frame in decode_image(read_image(path, FrameSelection(), True))]
        first = len(images)
        images += [
            Sample(name if len(shown) == 1 else f"{name}, image {place}", patchify(frame.pixels, settings))
            for place, frame in enumerate(shown, 1)
        ]
        prompts.build(row.question, [image.patches.grid for image in images[first:]])  # refuses what cannot be asked
        questions.append(Question(name, row.question, tuple(range(first, len(images)))))
    return Compared(images, questions)


def drawn(data: ComparedData) -> list[Row]:
    """Draw rows from a data file, always the same ones, in the file's order."""
    rows, _ = read_rows([data.source], data.images or data.source.parent)
    places = random.Random(0).sample(range(len(rows)), min(data.rows, len(rows)))
    return [rows[place] for place in sorted(places)]


def _prompts(checkpoint: Checkpoint) -> PromptBuilder:
    config = checkpoint.config
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
    return PromptBuilder(tokenizer, checkpoint.chat_template(), config.image_token_id, config.vision.spatial_merge_size)
