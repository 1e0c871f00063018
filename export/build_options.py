"""A build's options, and the checks before it begins."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.source.config import EchoVLMConfig
from echovlm_edge.export.targets import Target, target
from echovlm_edge.export.weights.quantize import Precision, PrecisionPolicy
from echovlm_edge.export.weights.rounding import ROUNDINGS, Rounding
from echovlm_edge.runtime.bundle.manifest import Limits, on_gpu
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings

DEFAULT_MAX_SEQUENCE = 4096
GPU_BATCH = 8  # sequences that a GPU decodes together, unless another number is asked for
LONGEST_NAME = 64  # characters of a DICOM Long String, which carries the name in a structured report (PS3.5 6.2)

CALIBRATION_TOKENS = 32768
FEEDBACK_WIDTH = 8192  # inputs of a layer up to which it is rounded with error feedback


@dataclass(frozen=True)
class CalibrationOptions:
    """What weights are rounded with.

    Attributes:
        source: a data file in the authors' format, or a folder of pictures.
        images: the folder that the data file's pictures are relative to; None for its own.
        tokens: how many are read, about.
        bits: of a value of the decoder's layers on average, with its share of the scales; None for what the precision takes.
        full_feedback: whether the widest layers are rounded with error feedback too.
    """

    source: Path
    images: Path | None = None
    tokens: int = CALIBRATION_TOKENS
    bits: float | None = None
    full_feedback: bool = False


COMPARED_ROWS = 8  # each holds its logits in memory, 100 MB for the published vocabulary


@dataclass(frozen=True)
class ComparedData:
    """The questions that a bundle is compared with PyTorch on.

    Attributes:
        source: a data file in the authors' format.
        images: the folder that its pictures are relative to; None for its own.
        rows: how many are drawn from it, at most.
    """

    source: Path
    images: Path | None = None
    rows: int = COMPARED_ROWS


SHARED_BY = 3


@dataclass(frozen=True)
class PhraseOptions:
    """What drafts are guessed from.

    Attributes:
        sources: files and folders of reports.
        shared_by: a phrase is kept if at least so many reports have it.
    """

    sources: tuple[Path, ...]
    shared_by: int = SHARED_BY


@dataclass(frozen=True)
class BuildOptions:
    """The options of `echovlm-build`."""

    checkpoint: Path
    output: Path
    target: str = "cpu"
    precision: str = "int4"
    block_size: int = 128
    rounding: str = "search"
    max_sequence: int | None = None
    max_batch: int | None = None
    samples: tuple[Path, ...] = ()
    data: ComparedData | None = None
    kv_cache: str | None = None
    device_plugin: Path | None = None
    name: str | None = None
    replace: bool = False
    spell_out: bool = False
    calibration: CalibrationOptions | None = None
    image_tokens: int | None = None
    adapter: Path | None = None
    phrases: PhraseOptions | None = None
    sign: Path | None = None
    mixed: Mapping[str, Precision] = field(
        default_factory=dict
    )  # of the decoder's parameters that differ from `precision`

    @property
    def cache_type(self) -> str:
        """Return the KV cache's type: the requested one, or the target's default."""
        return self.kv_cache or target(self.target, self.spell_out).cache_types[0]

    def check(self) -> None:
        """Refuse options that are wrong for every checkpoint.

        Raises:
            NotPossibleHere: an option, or a combination of two, is impossible.
        """
        _, _, _, _ = self.policy, self.how_to_round, self.chosen_target, self.model_name()
        wish = self.calibration
        if self.data:
            self._check_data(self.data)
        if self.phrases and self.phrases.shared_by < 1:
            raise NotPossibleHere(
                f"--phrases-shared-by {self.phrases.shared_by} is no number of reports: give at least 1."
            )
        if wish is None:
            return
        if self.policy.decoder.bits > 8:
            raise NotPossibleHere(
                f"--precision {self.precision} rounds nothing: leave --calibrate away, or choose int4 or int8."
            )
        if wish.bits is not None and self.policy.decoder.bits != 4:
            raise NotPossibleHere(
                "--bits mixes 8 bits into a bundle of 4: give --precision int4, or leave --bits away."
            )
        if wish.tokens < 1:
            raise NotPossibleHere(f"--calibration-tokens {wish.tokens} reads nothing: give at least 1.")

    def _check_data(self, data: ComparedData) -> None:
        if self.samples:
            raise NotPossibleHere("--data and --sample both say what to compare on: give one of them.")
        if data.rows < 1:
            raise NotPossibleHere(f"--data-rows {data.rows} compares nothing: give at least 1.")
        if self.calibration and self.calibration.source.resolve() == data.source.resolve():
            raise NotPossibleHere(
                f"--calibrate rounds with {data.source}, so that a comparison on it would be too good: give --data other rows."
            )

    @property
    def feedback_width(self) -> int:
        """Return the inputs up to which a layer is rounded with error feedback."""
        return sys.maxsize if self.calibration and self.calibration.full_feedback else FEEDBACK_WIDTH

    @property
    def policy(self) -> PrecisionPolicy:
        """Return the precision of each layer.

        Raises:
            NotPossibleHere: an unknown precision or block size.
        """
        return replace(PrecisionPolicy.of(self.precision, self.block_size, self.cache_type), mixed=self.mixed)

    @property
    def how_to_round(self) -> Rounding:
        """Return how weights become codes of 4 or 8 bits.

        Raises:
            NotPossibleHere: there is no such rounding.
        """
        if self.rounding not in ROUNDINGS:
            raise NotPossibleHere(f"There is no rounding {self.rounding}: choose one of {', '.join(ROUNDINGS)}.")
        return ROUNDINGS[self.rounding]

    @property
    def chosen_target(self) -> Target:
        """Return the target, as this install can build it.

        Raises:
            NotPossibleHere: there is no such target, or it does not support the precision or the cache's type.
        """
        chosen = target(self.target, self.spell_out, self.precision)
        chosen.check(self.precision, self.cache_type)
        return chosen

    def limits(self, config: EchoVLMConfig) -> Limits:
        """Return the bundle's context and batch for a model of this shape.

        Raises:
            NotPossibleHere: the context is longer than the model's positions, or context or batch are less than 1.
        """
        positions = config.decoder.max_position_embeddings
        context = min(DEFAULT_MAX_SEQUENCE, positions) if self.max_sequence is None else self.max_sequence
        check_context(context, positions)
        batch = self.max_batch if self.max_batch is not None else GPU_BATCH if on_gpu(self.target) else 1
        if batch < 1:
            raise NotPossibleHere(f"--max-batch {batch} decodes nothing: give at least 1.")
        return Limits(context, batch)

    def preprocess(self, checkpoint: Checkpoint) -> PreprocessSettings:
        """Return how frames are resized: as the checkpoint's preprocessor does, to at most `image_tokens`.

        Raises:
            NotPossibleHere: the checkpoint has no preprocessor.
            ImageTokensOutOfRange: its bound on a frame is lower already, or its least number of pixels is above that.
        """
        settings = PreprocessSettings.from_config(checkpoint.read_json("preprocessor_config.json"))
        return settings.bounded(self.image_tokens)

    def model_name(self) -> str:
        """Return the model's name: `--name`, or that of the checkpoint's folder.

        Raises:
            NotPossibleHere: a structured report cannot contain the name.
        """
        name = folder_name(self.checkpoint) if self.name is None else self.name
        if not name.strip() or len(name) > LONGEST_NAME or "\\" in name or not name.isprintable():
            raise NotPossibleHere(
                f"The model's name {name!r} cannot stand in a report: give a --name of 1 to {LONGEST_NAME} printable "
                "characters without a backslash."
            )
        return name


def folder_name(checkpoint: Path) -> str:
    """Return the model's name according to its checkpoint's folder.

    It is the folder's own name, except where that is the same for every model: a folder called `checkpoint` takes the name of its
    parent, and a snapshot in Hugging Face's cache (`models--owner--name/snapshots/<commit>`) that of its repository.
    """
    folder = checkpoint.resolve()
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.rpartition("--")[2]
    return folder.parent.name if folder.name == "checkpoint" and folder.parent.name else folder.name


def check_context(tokens: int, positions: int) -> None:
    """Refuse a context that a model cannot have.

    Raises:
        NotPossibleHere: `tokens` is less than 1, or more than the model's `positions`.
    """
    if not 1 <= tokens <= positions:
        raise NotPossibleHere(
            f"--max-sequence {tokens} is no context that this model can have: give between 1 and {positions}, its config.json's "
            "max_position_embeddings."
        )
