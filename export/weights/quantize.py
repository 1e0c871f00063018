"""Store weights: as floating point or in blocks of 4 or 8 bits, in the layouts that operators take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from echovlm_edge.export.weights.rounding import Rounding, Scales
from echovlm_edge.plugins.dual_path_moe.rounding import Codes, pack
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

PRECISIONS = ("int4", "int8", "fp16", "fp32")
BLOCK_SIZES = (128, 64, 32, 16)
CACHE_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Precision:
    """How a linear layer's weights are stored: `bits` 4 or 8 in blocks along its input, or 16 or 32 floating."""

    bits: int
    block_size: int = 128

    @property
    def name(self) -> str:
        """Return the name in `--precision`."""
        return {4: "int4", 8: "int8", 16: "fp16", 32: "fp32"}[self.bits]

    @property
    def float_type(self) -> ir.DataType:
        """Return the type of floating-point weights; those that are never quantized (norms, router, gates, biases, …) stay float32."""
        return ir.DataType.FLOAT16 if self.bits == 16 else ir.DataType.FLOAT

    def for_widths(self, widths: Sequence[int]) -> Precision:
        """Return this precision with the largest block that divides every input width; float32 where none does."""
        if self.bits > 8:
            return self
        fits = (size for size in BLOCK_SIZES if size <= self.block_size and all(width % size == 0 for width in widths))
        block_size = next(fits, None)
        return Precision(32) if block_size is None else Precision(self.bits, block_size)


@dataclass(frozen=True)
class PrecisionPolicy:
    """The precision of each layer: the decoder has the requested one, the image side and the head at least 8 bits.

    Every image token passes through the vision encoder and every generated token through the head: their errors reach everything
    that follows, and they are a small share of the bytes.
    """

    decoder: Precision
    kv_cache: ir.DataType = ir.DataType.FLOAT
    mixed: Mapping[str, Precision] = field(
        default_factory=dict
    )  # of the decoder's parameters that differ from `decoder`

    @classmethod
    def of(cls, name: str, block_size: int, kv_cache: str = "float32") -> PrecisionPolicy:
        """Make the policy for `--precision name --block-size block_size --kv-cache kv_cache`.

        Raises:
            NotPossibleHere: an unknown precision or block size.
        """
        if name not in PRECISIONS:
            raise NotPossibleHere(f"There is no precision {name}: choose one of {', '.join(PRECISIONS)}.")
        if block_size not in BLOCK_SIZES:
            raise NotPossibleHere(
                f"There is no block size {block_size}: choose one of {', '.join(map(str, BLOCK_SIZES))}."
            )
        return cls(Precision({"int4": 4, "int8": 8, "fp16": 16, "fp32": 32}[name], block_size), CACHE_TYPES[kv_cache])

    def layer(self, part: str, parameter: str) -> Precision:
        """Return the precision of one linear layer of a part."""
        if part == "decoder" and parameter in self.mixed:
            return self.mixed[parameter]
        sensitive = part != "decoder" or parameter == "lm_head.weight"
        return Precision(8, self.decoder.block_size) if sensitive and self.decoder.bits == 4 else self.decoder

    @property
    def image_attention_bits(self) -> int:
        """Bits of the products in the vision encoder's attention: 8 where its linear layers have 8, 0 for float32."""
        return 8 if self.decoder.bits <= 8 else 0

    def embedding(self, width: int) -> Storage:
        """Choose how the token embedding, whose rows have `width` values, is stored: in at least 8 bits.

        One row is read per token, so that fewer bits would save memory but no time.
        """
        if self.decoder.bits > 8:
            return Floating(self.decoder.float_type)
        precision = Precision(8, self.decoder.block_size).for_widths([width])
        return GroupedBlocks(precision) if precision.bits == 8 else Floating(ir.DataType.FLOAT16)


@dataclass(frozen=True)
class StoredTensor:
    """One initializer that a storage makes of a weight: its name's ending, dtype and shape."""

    ending: str
    dtype: ir.DataType
    shape: tuple[int, ...]


class Storage(Protocol):
    """Turns a weight [rows, columns] (or a vector) into the initializers that hold it."""

    @property
    def by_rows(self) -> bool:
        """Check whether rows of a weight become the same rows of every initializer, so that it can be encoded in pieces."""
        ...

    def tensors(self, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        """Describe the result of `encode` for a weight of this shape."""
        ...

    def encode(self, weight: Floats, rounding: Rounding) -> tuple[NDArray[np.generic], ...]:
        """Compute the initializers' values, in the same order; blocks of 4 or 8 bits by `rounding`."""
        ...


@dataclass(frozen=True)
class Floating:
    """Floating-point storage, unchanged or transposed to [columns, rows] for MatMul."""

    dtype: ir.DataType = ir.DataType.FLOAT
    transposed: bool = False

    @property
    def by_rows(self) -> bool:
        """Return False where rows become columns."""
        return not self.transposed

    def tensors(self, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        """Describe the one tensor."""
        ending = ".transposed" if self.transposed else ""
        return (StoredTensor(ending, self.dtype, shape[::-1] if self.transposed else shape),)

    def encode(self, weight: Floats, rounding: Rounding) -> tuple[NDArray[np.generic], ...]:
        """Convert, and transpose where asked."""
        return (np.ascontiguousarray(weight.T if self.transposed else weight, dtype=self.dtype.numpy()),)


@dataclass(frozen=True)
class GroupedBlocks:
    """DualPathMoE's own packing: INT8 [rows, columns * bits / 8], scales [rows, columns / block_size]."""

    precision: Precision
    scale_type: ir.DataType = ir.DataType.FLOAT
    by_rows: ClassVar[bool] = True

    def tensors(self, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        """Describe the packed values, then the scales."""
        rows, columns = shape
        packed = (rows, columns * self.precision.bits // 8)
        return (
            StoredTensor(".packed", ir.DataType.INT8, packed),
            StoredTensor(".scale", self.scale_type, (rows, columns // self.precision.block_size)),
        )

    def encode(self, weight: Floats, rounding: Rounding) -> tuple[NDArray[np.generic], ...]:
        """Round, and pack the codes."""
        codes, scales = _rounded(weight, self, rounding)
        return pack(codes, self.precision.bits), scales


@dataclass(frozen=True)
class MatMulNBitsBlocks:
    """com.microsoft.MatMulNBits: UINT8 [rows, blocks, bytes of a block], scales [rows, blocks], zero point implied.

    The scales have the type of the values that the weight is multiplied with.
    """

    precision: Precision
    by_rows: ClassVar[bool] = True
    scale_type: ir.DataType = ir.DataType.FLOAT

    def tensors(self, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        """Describe the packed values, then the scales."""
        rows, blocks = shape[0], shape[1] // self.precision.block_size
        packed = (rows, blocks, self.precision.block_size * self.precision.bits // 8)
        return (
            StoredTensor(".blocks", ir.DataType.UINT8, packed),
            StoredTensor(".block_scale", self.scale_type, (rows, blocks)),
        )

    def encode(self, weight: Floats, rounding: Rounding) -> tuple[NDArray[np.generic], ...]:
        """Compute the grouped packing's bytes; 8-bit values move up by 128, its zero point."""
        codes, scales = _rounded(weight, self, rounding)
        stored = pack(codes, self.precision.bits).view(np.uint8)
        if self.precision.bits == 8:
            stored = stored ^ np.uint8(128)
        return stored.reshape(self.tensors(weight.shape)[0].shape), scales


@dataclass(frozen=True)
class DequantizeColumns:
    """Standard DequantizeLinear before MatMul: INT4 or INT8 [columns, rows], scales [blocks, rows], block axis 0.

    The product is computed in the scales' type.
    """

    precision: Precision
    by_rows: ClassVar[bool] = False
    scale_type: ir.DataType = ir.DataType.FLOAT

    def tensors(self, shape: tuple[int, ...]) -> tuple[StoredTensor, ...]:
        """Describe the values, then the scales."""
        rows, columns = shape
        dtype = ir.DataType.INT4 if self.precision.bits == 4 else ir.DataType.INT8
        return (
            StoredTensor(".quantized", dtype, (columns, rows)),
            StoredTensor(".quantized_scale", self.scale_type, (columns // self.precision.block_size, rows)),
        )

    def encode(self, weight: Floats, rounding: Rounding) -> tuple[NDArray[np.generic], ...]:
        """Round, and transpose; a block of zeros, whose codes are 0, has the scale 1, as TensorRT refuses 0 for 8 bits."""
        codes, scales = _rounded(weight, self, rounding)
        scales[scales == 0] = 1
        values = np.ascontiguousarray(codes.T)
        return values.astype(ml_dtypes.int4) if self.precision.bits == 4 else values, np.ascontiguousarray(scales.T)


def _rounded(
    weight: Floats, storage: GroupedBlocks | MatMulNBitsBlocks | DequantizeColumns, rounding: Rounding
) -> tuple[Codes, Scales]:
    precision = storage.precision
    return rounding(weight, precision.bits, precision.block_size, scale_type=storage.scale_type.numpy())
