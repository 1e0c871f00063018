"""Estimate a bundle's memory from its shape: weights, caches and activations, even before the bundle is built."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from echovlm_edge.plugins.attention.reference import KEY_BLOCK
from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.bundle.cost_model import ModelShape, bundle_cache_token_bytes
from echovlm_edge.runtime.bundle.manifest import PREFILL_CHUNK, TOKEN_EMBEDDING, TOKENIZER, Manifest, on_gpu
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings

UNIFIED = ("jetson", "igx", "dgx")  # targets whose GPU works in the host's memory


class When(Enum):
    """When memory is allocated."""

    START = "at start"
    USED = "as used"
    PEAK = "at a peak"
    SWAP = "during SIGHUP"


class Where(Enum):
    """Whose memory it is."""

    HOST = "host"
    GPU = "GPU"


@dataclass(frozen=True)
class Item:
    """One thing that takes memory.

    Attributes:
        what: its name in tables.
        bytes: its largest size.
        bound: the options that bound it, as they are typed; empty if none does.
        when: when the memory is taken.
        where: in whose memory it lies.
    """

    what: str
    bytes: int
    bound: str
    when: When
    where: Where = Where.HOST


@dataclass(frozen=True)
class Widths:
    """A model's widths, which decide the size of its activations.

    Attributes:
        hidden, vocab, heads: of the decoder.
        groups: inner widths of DualPathMoE, all together.
        vision, vision_mlp, vision_heads: of the vision encoder; `vision_mlp` is half of its MLP's inner values.
        patch_values: numbers in a patch.
        merged: patches in a visual token.
        token_pixels: bytes of a visual token's RGB pixels.
        frame_patches: of the largest frame that the preprocessor lets through.
    """

    hidden: int
    vocab: int
    heads: int
    groups: int
    vision: int
    vision_mlp: int
    vision_heads: int
    patch_values: int
    merged: int
    token_pixels: int
    frame_patches: int

    @classmethod
    def of(cls, config: Mapping[str, Any], preprocess: PreprocessSettings) -> Widths:
        """Read the widths from a checkpoint's config.json; a missing key has the published model's value."""
        model, patch = ModelShape.of(config), preprocess.patch_size
        return cls(
            hidden=model.hidden,
            vocab=model.vocabulary,
            heads=model.heads,
            groups=sum(model.group_widths),
            vision=model.vision_width,
            vision_mlp=model.vision_mlp * model.vision_matrices // 2,
            vision_heads=model.vision_heads,
            patch_values=3 * preprocess.temporal_patch_size * patch**2,
            merged=preprocess.merge_size**2,
            token_pixels=3 * preprocess.unit**2,
            frame_patches=preprocess.max_pixels // patch**2,
        )


@dataclass(frozen=True)
class BundleShape:
    """The properties of a bundle that decide a server's memory; known before the bundle is built.

    Attributes:
        target, precision: as echovlm-build spells them.
        native: whether our operators run it.
        weights: bytes of the parts' files of weights, or of their engines.
        embedding, tokenizer: bytes of these files.
        cache_token: bytes of one token's keys and values.
        cache_context: the cache's length if an engine was built for one only.
        max_sequence: the bundle's context.
        most_slots: how many sequences a GPU decodes together at most; None on a CPU.
        widths: the model's.
    """

    target: str
    precision: str
    native: bool
    weights: int
    embedding: int
    tokenizer: int
    cache_token: int
    cache_context: int | None
    max_sequence: int
    most_slots: int | None
    widths: Widths

    @classmethod
    def of(cls, manifest: Manifest) -> BundleShape:
        """Read a bundle's shape from its bundle.json."""
        sizes = {file.name: file.bytes for file in manifest.files}
        context = manifest.cache_tensor.shape[2]
        return cls(
            target=manifest.target,
            precision=manifest.precision,
            native=manifest.operator_library is not None,
            weights=sum(part.weight_bytes for part in manifest.parts),
            embedding=sizes.get(TOKEN_EMBEDDING, 0),
            tokenizer=sizes.get(TOKENIZER, 0),
            cache_token=bundle_cache_token_bytes(manifest),
            cache_context=context if isinstance(context, int) else None,
            max_sequence=manifest.limits.max_sequence,
            most_slots=manifest.most_slots,
            widths=Widths.of(manifest.source.config, PreprocessSettings.from_config(manifest.preprocess)),
        )

    @property
    def on_gpu(self) -> bool:
        """Whether its parts run on a GPU."""
        return on_gpu(self.target)

    @property
    def place(self) -> Where:
        """In whose memory the parts' weights, caches and activations are; a GPU that shares the host's memory counts as the host."""
        return Where.GPU if self.on_gpu and not self.target.startswith(UNIFIED) else Where.HOST

    def cache_bytes(self, max_sequence: int) -> int:
        """Return the bytes of one sequence's keys and values; on a CPU their positions are allocated in whole blocks."""
        blocks = max_sequence if self.on_gpu else -(-max_sequence // KEY_BLOCK) * KEY_BLOCK
        return self.cache_token * (self.cache_context or blocks)


def activation_bytes(shape: BundleShape, max_sequence: int, image_tokens: int | None = None) -> int:
    """Estimate the bytes of the parts' activations at their largest; their arenas never shrink.

    Per patch of the largest frame, in float32 values: twice the patch, seven times the encoder's width, twice its MLP's width, and
    twice the patch again while it is cut from the frame; then the projector's. Per token of a prefill pass: eight times the decoder's
    width and twice DualPathMoE's inner values. Standard operators also hold all attention scores, and DualPathMoE's values eight
    times. `image_tokens` lowers the bundle's bound on a frame.
    """
    widths = shape.widths
    patches = min(widths.frame_patches, widths.merged * min(max_sequence, image_tokens or max_sequence))
    frame = patches * (4 * widths.patch_values + 7 * widths.vision + 2 * widths.vision_mlp)
    projector = patches // widths.merged * (2 * widths.merged * widths.vision + widths.hidden)
    tokens = min(PREFILL_CHUNK, max_sequence)
    copies = 2 if shape.native else 8
    prefill = tokens * (8 * widths.hidden + copies * widths.groups) + 6 * widths.vocab
    if not shape.native:
        frame += widths.vision_heads * patches**2
        prefill += 2 * widths.heads * tokens * max_sequence
    return 4 * (frame + projector + prefill)


def device_items(shape: BundleShape, memory: SlotMemory) -> tuple[Item, ...]:
    """List the memory that a GPU bundle takes on the GPU at its start, beside its activations."""
    length, slots = shape.cache_context or memory.max_sequence, memory.count
    caches = "a KV cache" if slots == 1 else f"{slots} KV caches"
    return (
        Item("weights", shape.weights, "", When.START, shape.place),
        Item(
            f"{caches} of {length} tokens",
            slots * shape.cache_bytes(memory.max_sequence),
            "--slots, --max-sequence",
            When.START,
            shape.place,
        ),
        Item("prompt cache", memory.kept_bytes, "--prefix-mb", When.START, shape.place),
    )


def total(items: Iterable[Item], where: Where = Where.HOST, *when: When) -> int:
    """Add up the bytes of the items in `where` that are taken at one of the times `when`, or at any time if none is given."""
    return sum(item.bytes for item in items if item.where is where and (not when or item.when in when))
