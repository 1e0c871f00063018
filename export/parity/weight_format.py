"""A format of the weights as one word, `int4/64/plain`: precision, values that share a scale, rounding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


@dataclass(frozen=True)
class WeightFormat:
    """Precision, block size and rounding, as `BuildOptions` has them."""

    precision: str
    block_size: int = BuildOptions.block_size
    rounding: str = BuildOptions.rounding

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `PRECISION[/BLOCK[/ROUNDING]]`.

        Raises:
            NotPossibleHere: the text is not that.
        """
        precision, *rest = text.split("/")
        if len(rest) > 2 or (rest and not rest[0].isdecimal()):
            raise NotPossibleHere(
                f"There is no format {text}: give a precision, and after slashes a block size and a rounding, as int4/64 or int4/64/plain."
            )
        block_size = int(rest[0]) if rest else cls.block_size
        return cls(precision, block_size, rest[1] if len(rest) > 1 else cls.rounding)

    @property
    def folder(self) -> str:
        """Return the name of a folder for a bundle of this format, as `int4-64-search`."""
        return (
            f"{self.precision}-{self.block_size}-{self.rounding}"
            if self.precision.startswith("int")
            else self.precision
        )

    def options(self, options: BuildOptions) -> BuildOptions:
        """Return a build's options with this format."""
        return replace(options, precision=self.precision, block_size=self.block_size, rounding=self.rounding)
