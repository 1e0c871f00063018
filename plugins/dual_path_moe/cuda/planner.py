"""Plan which kernels run for a number of tokens, with which grids and buffers: a pure function that every launcher implements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# The kernels of a call by its tokens: up to DECODE_TOKENS decode's, above them prefill's. Up to SPLIT_TOKENS the columns of down are
# divided into parts, since there are few other programs; into how many does not depend on the tokens, so neither do the sums.
DECODE_TOKENS = 16
SPLIT_TOKENS = 128
MOST_EXPERTS = 64
MOST_SPLITS = 8
PROGRAMS_PER_MULTIPROCESSOR = 4  # enough programs to keep the memory busy
WIDTH_MULTIPLE = 64
BUFFER_ALIGNMENT = 256


@dataclass(frozen=True)
class Shape:
    """One operator's sizes, as the kernels take them.

    Raises:
        ValueError: sizes that README.md's section "What the kernels accept" excludes.
    """

    hidden: int
    group_widths: tuple[int, ...]
    top_k: int
    bits: int
    block_size: int

    def __post_init__(self) -> None:
        """Raise for shapes that the kernels do not support."""
        if not 3 <= len(self.group_widths) <= 2 + MOST_EXPERTS:
            raise ValueError(f"{len(self.group_widths) - 2} experts: the GPU kernels take 1 to {MOST_EXPERTS}")
        if len(set(self.group_widths[2:])) > 1:
            raise ValueError(f"expert widths {self.group_widths[2:]} differ: the GPU kernels take experts of one width")
        if (self.bits, self.block_size) not in ((0, 0), (4, 64), (4, 128)):
            raise ValueError(
                f"{self.bits} bits in blocks of {self.block_size}: the GPU kernels take floating weights, or 4 bits in blocks of 64 or 128"
            )
        multiple = self.block_size or WIDTH_MULTIPLE
        for width in (self.hidden, *self.group_widths):
            if width < 1 or width % multiple:
                raise ValueError(f"width {width} is not a multiple of {multiple}, as the GPU kernels need")
        if not 1 <= self.top_k <= self.experts:
            raise ValueError(f"top_k {self.top_k} is not between 1 and the {self.experts} experts")

    @property
    def dense(self) -> int:
        """Inner width of the dense group."""
        return self.group_widths[0]

    @property
    def shared(self) -> int:
        """Inner width of the shared expert."""
        return self.group_widths[1]

    @property
    def expert(self) -> int:
        """Inner width of each routed expert."""
        return self.group_widths[2]

    @property
    def experts(self) -> int:
        """The number of routed experts."""
        return len(self.group_widths) - 2

    @property
    def inner(self) -> int:
        """Rows of gate and up: the sum of all groups' widths."""
        return sum(self.group_widths)


@dataclass(frozen=True)
class Tile:
    """How much work one program of a kernel does: the constants in an archive's record that determine a grid."""

    tokens: int
    rows: int


@dataclass(frozen=True)
class Launch:
    """One kernel launch: its tile, and the number of programs along x and y; scalars follow the pointers as README.md lists them."""

    kernel: str
    tile: Tile
    grid: tuple[int, int]
    scalars: tuple[int, ...]


@dataclass(frozen=True)
class Buffer:
    """A part of the workspace: its offset and size in bytes."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Plan:
    """Launches in order, and the workspace that they share."""

    launches: tuple[Launch, ...]
    buffers: tuple[Buffer, ...]

    @property
    def workspace(self) -> int:
        """Bytes of the workspace."""
        return max((buffer.offset + buffer.size for buffer in self.buffers), default=0)


def down_splits(row_tiles: int, multiprocessors: int) -> int:
    """Return the number of parts into which few tokens split the columns of down, so that a large device has enough programs."""
    splits = 1
    while splits < MOST_SPLITS and splits * row_tiles < PROGRAMS_PER_MULTIPROCESSOR * multiprocessors:
        splits *= 2
    return splits


def plan_decode(
    tokens: int, shape: Shape, multiprocessors: int, tile_of: Callable[[str], Tile], norm_topk_prob: bool = False
) -> Plan:
    """Plan 1 to 16 tokens; `tile_of` returns the tile of the selected record of a kernel.

    Raises:
        ValueError: fewer than 1 token or more than 16.
    """
    if not 1 <= tokens <= DECODE_TOKENS:
        raise ValueError(f"{tokens} tokens: the decode kernels take 1 to {DECODE_TOKENS}")
    down = tile_of("down_decode")
    row_tiles = _tiles(shape.hidden, down.rows)
    splits = down_splits(row_tiles, multiprocessors)
    gate_up = tile_of("gate_up_decode")
    sizes = _sizes(tokens, shape)
    launches = (
        _route(tokens, shape, tile_of("route"), norm_topk_prob),
        Launch("gate_up_decode", gate_up, (_inner_tiles(shape, gate_up.rows), 1), sizes),
        Launch("down_decode", down, (row_tiles, splits), (*sizes, splits)),
        _sum_parts(tokens, shape, tile_of("sum_parts"), splits),
    )
    return Plan(launches, _buffers(_common_sizes(tokens, shape) | {"parts": 4 * splits * tokens * shape.hidden}))


def plan_prefill(
    tokens: int, shape: Shape, multiprocessors: int, tile_of: Callable[[str], Tile], norm_topk_prob: bool = False
) -> Plan:
    """Plan any number of tokens; `tile_of` returns the tile of the selected record of a kernel.

    Raises:
        ValueError: fewer than 1 token.
    """
    if tokens < 1:
        raise ValueError(f"{tokens} tokens: the kernels take at least 1")
    gate_up, down = tile_of("gate_up_prefill"), tile_of("down_prefill")
    sizes, row_tiles = _sizes(tokens, shape), _tiles(shape.hidden, down.rows)
    splits = down_splits(row_tiles, multiprocessors) if tokens <= SPLIT_TOKENS else 1
    programs = _tiles(tokens, down.tokens) * splits, row_tiles
    launches: tuple[Launch, ...] = (
        _route(tokens, shape, tile_of("route"), norm_topk_prob),
        Launch("sort", tile_of("sort"), (shape.experts, 1), (tokens, shape.experts)),
        Launch("gate_up_prefill", gate_up, (_tiles(tokens, gate_up.tokens), _inner_tiles(shape, gate_up.rows)), sizes),
        Launch("down_prefill", down, programs, (*sizes, splits)),
    )
    parts = {}
    if splits > 1:
        launches += (_sum_parts(tokens, shape, tile_of("sum_parts"), splits),)
        parts = {"parts": 4 * splits * tokens * shape.hidden}
    lists = {"expert_tokens": 4 * shape.experts * tokens, "expert_counts": 4 * shape.experts}
    return Plan(launches, _buffers(_common_sizes(tokens, shape) | parts | lists))


def plan_linear(tokens: int, outputs: int, tile: Tile) -> tuple[int, int]:
    """Return the grid of `linear` for a product with `outputs` rows of weights."""
    return _tiles(tokens, tile.tokens), _tiles(outputs, tile.rows)


def _route(tokens: int, shape: Shape, tile: Tile, norm_topk_prob: bool) -> Launch:
    return Launch("route", tile, (tokens, 1), (shape.hidden, shape.experts, shape.top_k, int(norm_topk_prob)))


def _sum_parts(tokens: int, shape: Shape, tile: Tile, splits: int) -> Launch:
    elements = tokens * shape.hidden
    return Launch("sum_parts", tile, (_tiles(elements, tile.rows), 1), (elements, splits))


def _sizes(tokens: int, shape: Shape) -> tuple[int, ...]:
    return tokens, shape.hidden, shape.dense, shape.shared, shape.expert, shape.experts


def _common_sizes(tokens: int, shape: Shape) -> dict[str, int]:
    return {"group_weights": 4 * tokens * len(shape.group_widths), "inner": 2 * tokens * shape.inner}


def _buffers(sizes: dict[str, int]) -> tuple[Buffer, ...]:
    buffers, offset = [], 0
    for name, size in sizes.items():
        buffers.append(Buffer(name, offset, size))
        offset += _tiles(size, BUFFER_ALIGNMENT) * BUFFER_ALIGNMENT
    return tuple(buffers)


def _inner_tiles(shape: Shape, rows: int) -> int:
    return sum(_tiles(width, rows) for width in shape.group_widths)


def _tiles(size: int, tile: int) -> int:
    return -(-size // tile)
