"""Compile one variant for one device with Triton, without a GPU, and check its disassembly."""

from __future__ import annotations

import hashlib
import inspect
import re
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from echovlm_edge.plugins.dual_path_moe.cuda import down, gate_up, linear, resources, routing, variants, weights
from echovlm_edge.plugins.dual_path_moe.cuda.archive import Record
from echovlm_edge.plugins.dual_path_moe.cuda.resources import Resources
from echovlm_edge.plugins.dual_path_moe.cuda.variants import FUNCTIONS, PARAMETERS, Variant

MOST_REGISTERS = 255  # of a thread, on every device
SCRATCH_POINTERS = 2  # Triton's own, after the kernel's parameters


class KernelRefused(Exception):
    """A compiled kernel must not be shipped; the text is one sentence."""


def compile_variant(variant: Variant, sm: int) -> tuple[Record, bytes, Resources]:
    """Return the record, the cubin and its resource usage. Triton caches compiled kernels by a hash of the sources.

    Raises:
        KernelRefused: it spills, loads weights by less than 16 bytes, or has not the parameters that README.md states.
    """
    # The assembler may spill to fit more programs, unless it may use the most registers; the pipeline's depth shifts what is left.
    wanted = variant.num_stages
    for stages, most_registers in ((wanted, None), (wanted, MOST_REGISTERS), (wanted - 1, MOST_REGISTERS)):
        kernel, used = _compile(variant, sm, stages, most_registers)
        if not (used.spills or used.stack_bytes):
            break
    cubin, metadata = kernel.asm["cubin"], kernel.metadata
    complaints = used.complaints(sm, weights=variant.multiplies_weights)
    parameters = _parameters(kernel.asm["ptx"])
    if parameters != expected_parameters(variant):
        complaints.append(f"takes {parameters}, not {expected_parameters(variant)}")
    if metadata.global_scratch_size or metadata.profile_scratch_size:
        complaints.append("needs scratch memory")
    if metadata.num_warps != variant.num_warps or metadata.num_ctas != 1:
        complaints.append(f"wants {metadata.num_warps} warps in clusters of {metadata.num_ctas}")
    if complaints:
        raise KernelRefused(f"{variant.label} for SM {sm} {', '.join(complaints)}.")
    record = Record(
        variant.kernel, metadata.name, sm, variant.activation, variant.bits, variant.block_size, variant.experts_limit,
        variant.tile_tokens, variant.tile_rows, variant.tile_depth, variant.num_warps,
        metadata.shared, used.registers, len(parameters),
    )  # fmt: skip
    return record, cubin, used


def _compile(variant: Variant, sm: int, stages: int, most_registers: int | None) -> tuple[Any, Resources]:
    triton.knobs.compilation.disable_line_info = False  # loads are distinguished by their source line
    source = triton.compiler.ASTSource(
        fn=FUNCTIONS[variant.kernel], signature=variant.signature, constexprs=variant.constants, attrs=variant.hints
    )
    options = {
        "num_warps": variant.num_warps,
        "num_stages": stages,
        "maxnreg": most_registers,
        "enable_fp_fusion": True,
    }
    kernel = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        lines = resources.weight_lines(inspect.getsource(weights))
        return kernel, resources.measure(path, kernel.metadata.shared, lines, triton.knobs.nvidia)


def expected_parameters(variant: Variant) -> list[str]:
    """List the PTX types of the parameters that README.md states, including the two scratch pointers."""
    stated = ["u64" if kind.startswith("*") else "u32" for kind in PARAMETERS[variant.kernel].values()]
    return stated + ["u64"] * SCRATCH_POINTERS


def source_hash() -> bytes:
    """Hash the kernels' sources, their constants and the compiler's version with SHA-256."""
    digest = hashlib.sha256(triton.__version__.encode())
    for module in (routing, weights, gate_up, down, linear, variants):
        digest.update(inspect.getsource(module).encode())
    return digest.digest()


def _parameters(ptx: str) -> list[str]:
    entry = re.search(r"\.entry \w+\((.*?)\)", ptx, re.DOTALL)
    return re.findall(r"\.param \.(\w+)", entry[1]) if entry else []
