"""Read a compiled kernel's resource usage from its disassembly: registers, spills, tensor-core products, bytes per weight load."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOAD_BYTES = 16  # the widest load that every device has
# Shared memory that one block may ask for, KiB (CUDA programming guide, table of technical specifications).
SHARED_LIMIT = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 110: 227, 120: 99, 121: 99}
WEIGHT_FILE = "weights.py"

_MARK = re.compile(r'^\s*//## File "([^"]+)", line (\d+)')
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")
_GLOBAL_LOAD = re.compile(r"LDG(STS)?\.")
_WIDTHS = {".256": 32, ".128": 16, ".64": 8, ".U16": 2, ".S16": 2, ".U8": 1, ".S8": 1}
_PRODUCT = re.compile(r"(UTC)?[HI]?G?MMA\b|UTC\w*MMA")


@dataclass(frozen=True)
class Resources:
    """Resource usage of one cubin; `weight_load_bytes` is the narrowest load of weights, 0 if there is none."""

    registers: int
    stack_bytes: int
    spills: int
    shared_bytes: int
    tensor_core_products: int
    weight_loads: int
    weight_load_bytes: int

    def complaints(self, sm: int, weights: bool) -> list[str]:
        """List the reasons why this kernel must not be shipped; `weights` says that it multiplies by stored weights."""
        found = []
        if self.spills or self.stack_bytes:
            found.append(f"spills registers ({self.spills} instructions, {self.stack_bytes} bytes of stack)")
        if self.shared_bytes > SHARED_LIMIT[sm] * 1024:
            found.append(f"needs {self.shared_bytes} bytes of shared memory of {SHARED_LIMIT[sm]} KiB")
        if weights and not self.tensor_core_products:
            found.append("does not use the tensor cores")
        if weights and not self.weight_loads:
            found.append("loads no weights by the line that is known to")
        elif weights and self.weight_load_bytes < LOAD_BYTES:
            found.append(f"loads weights by {self.weight_load_bytes} bytes, not {LOAD_BYTES}")
        return found


def measure(cubin: Path, shared_bytes: int, weight_lines: frozenset[int], tools: Any) -> Resources:
    """Disassemble one cubin; `tools` has the paths of nvdisasm and cuobjdump as Triton's `knobs.nvidia` does.

    Raises:
        subprocess.CalledProcessError: a tool failed.
    """
    usage = _output(tools.cuobjdump.path, "-res-usage", cubin)
    registers, stack = (int(re.findall(rf"{name}:(\d+)", usage)[-1]) for name in ("REG", "STACK"))
    return parse(_output(tools.nvdisasm.path, "-c", "-gi", cubin), registers, stack, shared_bytes, weight_lines)


def parse(
    disassembly: str, registers: int, stack_bytes: int, shared_bytes: int, weight_lines: frozenset[int]
) -> Resources:
    """Count instructions in the output of `nvdisasm -c -gi`, with the source line that each comes from."""
    spills = products = 0
    widths = []
    for operation, file, line in _instructions(disassembly):
        spills += operation.startswith(("STL", "LDL"))
        products += bool(_PRODUCT.match(operation))
        if _GLOBAL_LOAD.match(operation) and file == WEIGHT_FILE and line in weight_lines:
            widths.append(next((width for suffix, width in _WIDTHS.items() if suffix in operation), 4))
    return Resources(registers, stack_bytes, spills, shared_bytes, products, len(widths), min(widths, default=0))


def weight_lines(source: str) -> frozenset[int]:
    """Return the lines of weights.py from which weights are loaded: the calls of `load_tile`, and its body."""
    lines = source.splitlines()
    return frozenset(
        number for number, text in enumerate(lines, 1) if re.search(r"load_tile\(|tl\.load\(pointers\)", text)
    )


def _instructions(disassembly: str) -> Iterator[tuple[str, str, int]]:
    file, number, marked = "", 0, False
    for text in disassembly.splitlines():
        if mark := _MARK.match(text):
            if not marked:  # if there are several in a row, the first is the innermost call
                file, number = Path(mark[1]).name, int(mark[2])
            marked = True
        elif instruction := _INSTRUCTION.match(text):
            marked = False
            yield instruction[1], file, number


def _output(tool: str, *arguments: str | Path) -> str:
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout
