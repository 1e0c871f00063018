"""A build's calibration, from its options to rounded weights: what `echovlm-build` calls."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.bundle.planned_bundle import PlannedBundle
from echovlm_edge.export.calibration.account import MOST_WORKERS, Account, account
from echovlm_edge.export.calibration.passage.examples import read_examples
from echovlm_edge.export.calibration.passage.linears import Visitor
from echovlm_edge.export.calibration.passage.parallel import workers
from echovlm_edge.export.calibration.passage.passage import Passage
from echovlm_edge.export.calibration.passage.texts import PLAIN_WAY, Text, prepare
from echovlm_edge.export.calibration.record import describe
from echovlm_edge.export.calibration.rounding.mixed import choose, precisions
from echovlm_edge.export.calibration.rounding.rounded_weights import RoundedWeights
from echovlm_edge.export.calibration.rounding.rounder import Rounder, Wanted
from echovlm_edge.export.calibration.rounding.sensitivity import Sensitivity, measured_names
from echovlm_edge.export.calibration.work_folder import work_folder
from echovlm_edge.export.engines.gpu_kernels import take_precision
from echovlm_edge.export.progress import Progress
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.quantize import DequantizeColumns, GroupedBlocks, MatMulNBitsBlocks, Precision
from echovlm_edge.export.weights.rounding import Rounding
from echovlm_edge.export.weights.weight_file import Piece, RoundingOf
from echovlm_edge.runtime.bundle.calibration_pictures import write_pictures
from echovlm_edge.runtime.bundle.manifest import Calibration, on_gpu
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.tables import readable_bytes
from echovlm_edge.runtime.resources.machine_memory import machine_memory
from echovlm_edge.runtime.resources.processors import usable_processors


@dataclass(frozen=True)
class Room:
    """A calibration under way.

    Attributes:
        options: of the build.
        texts: what the model reads.
        identity: of everything that decides the result.
        progress: shows how far it is.
    """

    options: BuildOptions
    texts: Sequence[Text]
    identity: str
    progress: Progress
    _passage: Passage
    _rounded: RoundedWeights

    def choose(self) -> Mapping[str, Precision]:
        """Measure the layers' sensitivity and choose each one's precision under the budget; empty where there is no budget."""
        assert self.options.calibration is not None
        if self.options.calibration.bits is None:
            return {}
        passage, names = self._passage, measured_names(self._passage.checkpoint)
        with self.progress.stage("Measuring sensitivity", total=sum(names.values())) as advance:
            ways = _precisions(self.options, passage.checkpoint)
            visitor = Sensitivity(ways, names, passage.folder / "sensitivity", passage.pool, advance)
            passage.run(visitor, "measured")
        return choose(visitor.units(passage.checkpoint), self.options.calibration.bits)

    def round(self, planned: PlannedBundle) -> None:
        """Round all weights that the planned bundle stores in blocks, but for the token embedding."""
        wanted = _wanted(planned)
        width = self.options.feedback_width
        with self.progress.stage("Calibrating", total=sum(one.values for one in wanted.values())) as advance:
            visitor: Visitor = Rounder(wanted, self._rounded, width, self._passage.pool, advance)
            self._passage.run(visitor, "rounded")
        assert self._rounded.made.keys() == wanted.keys(), "a weight was not shown"

    def rounding_of(self, planned: PlannedBundle, otherwise: Rounding) -> RoundingOf:
        """Return how each piece of the bundle is rounded: as `round` has done it, or `otherwise`.

        The token embedding may share its values with the head, but not the head's inputs.
        """

        def rounding(piece: Piece) -> Rounding:
            if piece.file == planned.embedding.name:
                return otherwise
            return self._rounded.rounding_of(piece, self._passage.checkpoint) or otherwise

        return rounding

    def record(self, bundle: Path) -> Calibration:
        """Write the pictures' hashes into the bundle; returns how its weights were rounded."""
        write_pictures(bundle, (picture.hash for text in self.texts for picture in text.pictures))
        return describe(self.texts, self._rounded.made, measured_names(self._passage.checkpoint))


@contextlib.contextmanager
def calibration_room(options: BuildOptions, checkpoint: Checkpoint, progress: Progress) -> Iterator[Room | None]:
    """Prepare what `--calibrate` asks for; yields None where it was not given.

    Raises:
        NotPossibleHere: the data cannot be used, or memory or disk are too small.
    """
    wish = options.calibration
    if wish is None:
        yield None
        return
    settings = options.preprocess(checkpoint)
    with progress.stage("Reading pictures"):
        examples = read_examples(wish.source, wish.images, progress.note)
        texts = prepare(examples, checkpoint, settings, wish.tokens, progress.note)
    tokens = sum(len(text.token_ids) for text in texts)
    _check_machine(options, planned_account(options, checkpoint, tokens))
    identity = _identity(options, checkpoint, texts)
    with work_folder(options.output, identity) as (folder, journal), workers(threads()) as pool:
        passage = Passage(checkpoint, texts, folder, journal, pool)
        yield Room(options, texts, identity, progress, passage, RoundedWeights(folder, journal))


def threads() -> int:
    """Return how many threads calibrate on this machine."""
    return min(MOST_WORKERS, usable_processors())


def planned_account(options: BuildOptions, checkpoint: Checkpoint, tokens: int) -> Account:
    """Compute what a build's calibration takes with so many tokens."""
    assert options.calibration is not None
    return account(checkpoint, tokens, options.feedback_width, threads(), mixed=options.calibration.bits is not None)


def _check_machine(options: BuildOptions, needed: Account) -> None:
    memory, disk = machine_memory().available, free_disk(options.output)
    for what, least, there in (("memory", needed.memory, memory), ("disk", needed.disk, disk)):
        if least > there:
            raise NotPossibleHere(
                f"The calibration takes {readable_bytes(least)} of {what}, and this machine has {readable_bytes(there)} free: free some, "
                f"give fewer --calibration-tokens, or leave --calibrate away to round without data."
            )


def free_disk(output: Path) -> int:
    """Return the bytes that are free where a bundle's calibration has its folder."""
    return shutil.disk_usage(next(folder for folder in output.absolute().parents if folder.exists())).free


def _precisions(options: BuildOptions, checkpoint: Checkpoint) -> Sequence[Precision]:
    """Return the ways in which the target's operators take all the decoder's layers."""
    decoder = checkpoint.config.decoder
    widths = [decoder.hidden_size, decoder.num_attention_heads * decoder.head_dim, *decoder.group_widths]
    base = options.policy.decoder.for_widths(widths)
    if base.bits != 4:
        raise NotPossibleHere(
            f"--bits chooses between 4 and 8 bits, which this checkpoint's widths do not allow: leave it away; {PLAIN_WAY}."
        )
    ways = precisions(base.block_size)
    return [way for way in ways if take_precision(way)] if on_gpu(options.target) else ways


def _wanted(planned: PlannedBundle) -> dict[str, Wanted]:
    """Return how the planned parts store each checkpoint tensor, of those that they store in blocks."""
    return {
        name: Wanted(
            stored.storage.precision,
            stored.storage.scale_type.numpy(),
            math.prod(planned.checkpoint.tensors[name].shape),
        )
        for part in planned.parts
        for stored in part.stored.values()
        if isinstance(stored.storage, GroupedBlocks | MatMulNBitsBlocks | DequantizeColumns)
        for name in stored.weight.tensors
    }


def _identity(options: BuildOptions, checkpoint: Checkpoint, texts: Sequence[Text]) -> str:
    """Identify everything that decides the rounded weights."""
    assert options.calibration is not None
    digest = hashlib.sha256()
    wish = options.calibration
    for text in texts:
        digest.update("".join(picture.hash for picture in text.pictures).encode())
        digest.update(text.token_ids.tobytes())
    decisive = [
        *(
            checkpoint.identity(),
            digest.hexdigest(),
            options.target,
            options.spell_out,
            options.precision,
            options.block_size,
        ),
        *(wish.bits, options.feedback_width, options.image_tokens),
    ]
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()
