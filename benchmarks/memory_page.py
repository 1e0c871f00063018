"""Write the memory table of docs/operations.md from the memory model, or compare a running server with the model.

python -m benchmarks.memory_page                        # writes the table between the page's markers
python -m benchmarks.memory_page --measure BUNDLE       # fills a server of a bundle, and compares its resident memory
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from math import isqrt
from pathlib import Path
from typing import Any

from benchmarks.full import high_water_gb
from benchmarks.served import serving
from echovlm_edge.export.estimate.roofline import Roofline
from echovlm_edge.export.targets import target
from echovlm_edge.export.weights.quantize import PrecisionPolicy
from echovlm_edge.runtime.backends.bundle_memory import BundleShape, Item, When, Where, Widths, total
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings
from echovlm_edge.runtime.profiling.measurement.requests import frame
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.supervision.server_memory import account, served_slots

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- memory -->", "<!-- /memory -->"
MAX_SEQUENCE = 4096  # echovlm-build's default
MAX_PIXELS = 12_845_056  # of the published preprocessor
TOKENIZER = 8_036_568  # bytes of the published vocabulary's tokenizer.json
ROUNDS = 2
LOAD: dict[str, Any] = {
    "slots": 2,
    "queue": 0,
    "prefix_mb": 64,
    "image_mb": 16,
    "reply_mb": 4,
    "study_mb": 1,
    "upload_mb": 0,
    "parked_mb": 0,
    "decode_processes": 1,
}


def published_shape() -> BundleShape:
    """Return the published model in 4 bits on a CPU, with weights counted as the roofline does."""
    config = json.loads((ROOT / "tests" / "published" / "config.json").read_text(encoding="utf-8"))
    roofline = Roofline.of(config, target("cpu"), PrecisionPolicy.of("int4", 128), MAX_SEQUENCE)
    return BundleShape(
        target="cpu",
        precision="int4",
        native=True,
        weights=int(sum(roofline.costs.weight_bytes().values())),
        embedding=int(roofline.embedding_bytes()),
        tokenizer=TOKENIZER,
        cache_token=roofline.cache_bytes(1),
        cache_context=None,
        max_sequence=MAX_SEQUENCE,
        most_slots=None,
        widths=Widths.of(config, PreprocessSettings(max_pixels=MAX_PIXELS)),
    )


def table() -> str:
    """Render the table between the page's markers: the published model with the server's defaults."""
    items = account(published_shape(), ServeSettings(bundle=Path("bundle")))
    return "\n".join(_rows(items))


def _rows(items: Sequence[Item]) -> Iterator[str]:
    yield "| what | GB at most | taken | bounded by |"
    yield "| --- | ---: | --- | --- |"
    for when, group in groupby(sorted(items, key=lambda item: list(When).index(item.when)), key=lambda item: item.when):
        some = list(group)
        for item in some:
            options = ", ".join(f"`{name}`" for name in item.bound.split(", ") if name)
            yield f"| {item.what} | {item.bytes / 1e9:.2f} | {item.when.value} | {options} |"
        if when is not When.SWAP:
            until = list(When)[: list(When).index(when) + 1]
            yield f"| **together, {when.value}** | **{sum(i.bytes for i in items if i.when in until) / 1e9:.2f}** | | |"
    yield ""


def write_page() -> None:
    """Write the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}{END}{after}", encoding="utf-8")


def measure(bundle: Path) -> None:
    """Fill the slots and caches of a server, and print its own peak (without decoding processes) next to the estimate."""
    settings = ServeSettings(bundle=bundle, **LOAD)
    options = [word for name, value in LOAD.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    shape = BundleShape.of(Bundle(bundle).manifest)
    slots = served_slots(shape, settings)
    items = [item for item in account(shape, settings) if "decoding" not in item.what]
    start, used, worst = (total(items, Where.HOST, *list(When)[: count + 1]) / 1e9 for count in range(3))
    with tempfile.TemporaryDirectory() as folder, serving(bundle, Path(folder), *options) as served:
        print(f"at start: {high_water_gb(served.pid):.3f} GB seen, {start:.3f} in the model")
        for round_ in range(ROUNDS):
            with ThreadPoolExecutor(slots) as pool:
                list(
                    pool.map(
                        lambda slot, r=round_: _fill(served.address, slots * r + slot, shape),
                        range(slots),
                    )
                )
            print(f"round {round_}: {high_water_gb(served.pid):.3f} GB seen, {used:.3f} as used, {worst:.3f} at a peak")


def _fill(address: str, number: int, shape: BundleShape) -> None:
    """Make one call with different pictures each time, at the model's resolution, that fill nine tenths of the context."""
    tokens = min(shape.widths.frame_patches // shape.widths.merged, int(0.9 * shape.max_sequence))
    unit = isqrt(shape.widths.token_pixels // 3)
    side = isqrt(tokens)
    count = min(64, int(0.9 * shape.max_sequence / side**2))
    images = [frame(1000 * number + index, side * unit, side * unit) for index in range(count)]
    with Connection(address) as client:
        *_, last = client.generate(ReportRequest(images=images, sampling=Sampling(max_new_tokens=8)))
    print(f"  a call of {count} pictures, {last.result.usage.prompt_tokens} tokens")


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="BUNDLE")
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
    else:
        write_page()
        print(f"{PAGE} written.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
