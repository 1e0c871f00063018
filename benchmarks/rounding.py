"""Time how a build rounds weights, search and plain in alternation: a dense path's gate, in pieces as a build has them, on all processors.

python -m benchmarks.rounding
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median

import numpy as np
import onnx_ir as ir
from rich.console import Console

from echovlm_edge.export.weights.quantize import GroupedBlocks, Precision
from echovlm_edge.export.weights.rounding import ROUNDINGS
from echovlm_edge.export.weights.weight_file import PIECE_VALUES
from echovlm_edge.runtime.contracts.tables import figures, new_table, print_table
from echovlm_edge.runtime.profiling.measurement.machine import cpu_name
from echovlm_edge.runtime.resources.processors import usable_processors

ROWS, COLUMNS = 18944, 3584
FORMATS = ((4, 128), (4, 64), (4, 32), (8, 128))
RUNS = 5


def main() -> int:
    """Run the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(description="Time the rounding of weights, by search and plain.")
    parser.add_argument("--threads", type=int, default=usable_processors())
    threads = parser.parse_args().threads
    weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), dtype=np.float32)
    step = PIECE_VALUES // COLUMNS
    pieces = [weight[first : first + step] for first in range(0, ROWS, step)]
    title = f"Rounding with {threads} threads, {cpu_name()}: float32 read, MB/s"
    table = new_table(title, *map(figures, ("bits", "block", "plain", "search", "time")))
    with ThreadPoolExecutor(threads) as pool:
        for bits, block in FORMATS:
            storage = GroupedBlocks(Precision(bits, block), ir.DataType.FLOAT16)
            seconds: dict[str, list[float]] = {name: [] for name in ("plain", "search")}
            for _ in range(RUNS):
                for name, taken in seconds.items():
                    started = time.perf_counter()
                    list(pool.map(partial(storage.encode, rounding=ROUNDINGS[name]), pieces))
                    taken.append(time.perf_counter() - started)
            rates = [weight.nbytes / median(taken) / 1e6 for taken in seconds.values()]
            table.add_row(str(bits), str(block), *(f"{rate:,.0f}" for rate in rates), f"{rates[0] / rates[1]:.2f}x")
    print_table(Console(), table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
