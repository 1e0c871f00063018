"""The model of memory: the same before and after a build, what backends allocate, what to lower, and a server that stays within it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks import memory_page
from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.export.build_options import BuildOptions
from echovlm_edge.export.bundle.planned_bundle import bundle_shape, plan
from echovlm_edge.export.graph.sketch import sketched_parts
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import SlotMemory
from echovlm_edge.runtime.backends.bundle_memory import BundleShape, When, Where, total
from echovlm_edge.runtime.backends.onnxruntime import OnnxRuntimeBackend
from echovlm_edge.runtime.bundle.manifest import Bundle, read_manifest
from echovlm_edge.runtime.resources.machine_memory import MachineMemory, machine_memory
from echovlm_edge.runtime.serving.supervision import from_settings, serve_command
from echovlm_edge.runtime.serving.supervision.memory_fit import LOWERABLE, Fit, judge
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.supervision.server_memory import account
from tests.support import golden
from tests.support.dicom_files import encode
from tests.support.server_process import server_process

BuildBundle = Callable[..., Path]
GB = 10**9
PUBLISHED = memory_page.published_shape()
DEFAULTS = ServeSettings(bundle=Path("bundle"))


def bytes_of(shape: BundleShape, settings: ServeSettings, what: str) -> int:
    (item,) = (item for item in account(shape, settings) if item.what == what)
    return item.bytes


# --- the account ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"kv_cache": "float16"}, {"kv_cache": "int8"}, {"target": "portable"}], ids=str
)
def test_the_plan_counts_what_the_bundle_will_take(options: dict[str, Any], build_bundle: BuildBundle) -> None:
    asked = BuildOptions(golden.CHECKPOINT, Path("nowhere"), precision="fp32", **options)
    planned = bundle_shape(asked, plan(asked, Checkpoint(asked.checkpoint), sketched_parts))
    assert planned == BundleShape.of(Bundle(build_bundle(**options)).manifest)


@pytest.mark.parametrize("kv_cache", ["float32", "float16", "int8"])
def test_every_slot_is_counted_as_it_is_allocated(kv_cache: str, build_bundle: BuildBundle) -> None:
    bundle = Bundle(build_bundle(kv_cache=kv_cache) if kv_cache != "float32" else build_bundle())
    settings = ServeSettings(bundle=bundle.path, slots=3, max_sequence=50)
    slot, *_ = OnnxRuntimeBackend(bundle).new_slots(SlotMemory(3, 50))
    allocated = sum(buffer.nbytes for buffer in slot.buffers.values())
    assert bytes_of(BundleShape.of(bundle.manifest), settings, "KV caches") == allocated


def test_every_option_that_bounds_something_lowers_it() -> None:
    """And nothing else: an option that a table names is the one to turn."""
    items = account(PUBLISHED, DEFAULTS)
    for name, (lowest, _) in LOWERABLE.items():
        changed = account(PUBLISHED, DEFAULTS.model_copy(update={name: lowest}))
        flag = f"--{name.replace('_', '-')}"
        for before, after in zip(items, changed, strict=True):
            if before.when is not When.SWAP:
                assert (after.bytes < before.bytes) == (flag in before.bound.split(", ")), (flag, before)


def test_a_graphics_card_holds_the_weights_the_slots_and_the_cached_prompts() -> None:
    card = replace(PUBLISHED, target="rtx", native=True, most_slots=4)
    items = account(card, DEFAULTS)
    assert total(items, Where.GPU, When.START) == card.weights + 4 * card.cache_bytes(4096) + (1024 << 20)
    assert total(items, Where.HOST, When.START) < card.weights
    shared = account(replace(card, target="jetson-orin"), DEFAULTS)
    assert total(shared, Where.GPU) == 0 and total(shared, Where.HOST, When.START) > card.weights
    memory = MachineMemory(64 * GB, None, 60 * GB)
    assert judge(card, DEFAULTS, memory, gpu=20 * GB).fit is Fit.FITS
    small = judge(card, DEFAULTS, memory, gpu=8 * GB)
    assert small.fit is Fit.SHORT and "the GPU has 8.0 GB: lower --prefix-mb to 0, --slots to 1 and" in str(small)


# --- the sentence --------------------------------------------------------------------------------------------------


def test_a_sentence_says_what_is_missing_and_what_to_lower() -> None:
    machine = MachineMemory(24 * GB, None, 14 * GB)
    plain = ServeSettings(
        bundle=Path("bundle"), queue=0, prefix_mb=0, parked_mb=0, study_mb=64, upload_mb=0, decode_mb=1024
    )
    assert str(judge(PUBLISHED, plain, machine)) == (
        "The server needs 16.7 GB and this machine has 14.0 GB free: lower --max-sequence to 2560 or --slots to 3."
    )
    never = judge(PUBLISHED, plain, MachineMemory(6 * GB, None, 5 * GB))
    assert never.fit is Fit.NEVER and str(never).startswith(
        "The server needs 7.7 GB at start and this machine has 6.0 GB: no option saves enough"
    )
    assert judge(PUBLISHED, plain, MachineMemory(64 * GB, None, 60 * GB)).fit is Fit.FITS
    assert judge(PUBLISHED, plain, MachineMemory(0, None, 0)).fit is Fit.FITS, "a system that says nothing is no error"


@given(available=st.integers(8 * GB, 40 * GB), slots=st.integers(1, 16), prefix_mb=st.integers(0, 4096))
def test_what_is_to_be_lowered_is_enough_and_no_more(available: int, slots: int, prefix_mb: int) -> None:
    settings = ServeSettings(bundle=Path("bundle"), slots=slots, prefix_mb=prefix_mb)
    memory = MachineMemory(64 * GB, None, available)
    verdict = judge(PUBLISHED, settings, memory)
    if verdict.fit is Fit.FITS or "no option" in verdict.fix:
        return
    order = list(Fit)
    for alternative in verdict.fix.removeprefix("lower ").split(" or "):
        lowered = {
            name.replace("-", "_"): int(value) for name, value in re.findall(r"--([a-z-]+) to (\d+)", alternative)
        }
        assert lowered, verdict.fix
        better = judge(PUBLISHED, settings.model_copy(update=lowered), memory).fit
        assert order.index(better) > order.index(verdict.fit)
        last = list(lowered)[-1]
        less = lowered | {last: lowered[last] + LOWERABLE[last][1]}
        if less[last] < (getattr(settings, last) or PUBLISHED.max_sequence):
            assert judge(PUBLISHED, settings.model_copy(update=less), memory).fit is verdict.fit


# --- the machine ---------------------------------------------------------------------------------------------------


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB\n"}
MOUNT_V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
MOUNT_V1 = "35 31 0:33 {group} /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
STAT = "anon 1\nactive_file 1000000000\ninactive_file 500000000\n"


def test_a_control_groups_limit_is_the_machines(tmp_path: Path) -> None:
    """The lowest limit of the group and those above it; the file cache does not count as used."""
    group = "sys/fs/cgroup/system.slice/echovlm.service"
    root = write(
        tmp_path,
        MEMINFO
        | {
            "proc/self/cgroup": "0::/system.slice/echovlm.service\n",
            "proc/self/mountinfo": MOUNT_V2,
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "9\n",
            "sys/fs/cgroup/system.slice/memory.max": "4000000000\n",
            "sys/fs/cgroup/system.slice/memory.current": "3000000000\n",
            "sys/fs/cgroup/system.slice/memory.stat": STAT,
        },
    )
    assert machine_memory(root) == MachineMemory(16_384_000_000, 4_000_000_000, 2_500_000_000)


def test_version_1_of_control_groups(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory/docker/1"
    files = {
        "proc/self/cgroup": "5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n",
        "proc/self/mountinfo": MOUNT_V1.format(group="/"),
        f"{group}/memory.limit_in_bytes": "2000000000\n",
        f"{group}/memory.usage_in_bytes": "1700000000\n",
        f"{group}/memory.stat": "total_active_file 600000000\ntotal_inactive_file 0\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert machine_memory(write(tmp_path / "host", MEMINFO | files)) == MachineMemory(
        16_384_000_000, 2_000_000_000, 900_000_000
    )
    # In a container /proc names the host's path, and the mounted top is the group itself.
    inside = {name.replace("/docker/1", ""): text for name, text in files.items() if name.startswith(group)}
    inside |= {"proc/self/cgroup": "4:memory:/docker/1\n", "proc/self/mountinfo": MOUNT_V1.format(group="/docker/1")}
    assert machine_memory(write(tmp_path / "inside", MEMINFO | inside)).limit == 2_000_000_000
    # A group within the container's: its path is below what is mounted.
    inside["proc/self/cgroup"] = "4:memory:/docker/1/inner\n"
    inside["sys/fs/cgroup/memory/inner/memory.limit_in_bytes"] = "1000000000\n"
    assert machine_memory(write(tmp_path / "inner", MEMINFO | inside)).limit == 1_000_000_000


def test_groups_that_cannot_be_understood_are_no_limit(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "nonsense\n0::\n:::\n", "proc/self/mountinfo": "short - cgroup2\n" + MOUNT_V2}
    assert machine_memory(write(tmp_path, MEMINFO | files)).limit is None


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert machine_memory(write(tmp_path / "plain", MEMINFO)).limit is None
    assert machine_memory(tmp_path / "silent") == MachineMemory(0, None, 0)


# --- the server ----------------------------------------------------------------------------------------------------


def test_a_server_that_cannot_fit_is_refused_at_start(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(from_settings, "machine_memory", lambda: MachineMemory(GB // 5, None, GB // 5))
    assert serve_command.main(["--bundle", str(golden_bundle), "--listen", "127.0.0.1:0"]) == 2
    assert "at start and this machine has 0.2 GB" in capsys.readouterr().err


@pytest.mark.parametrize(("available", "level"), [(64 * GB, "INFO"), (9 * GB, "WARNING"), (2 * GB, "WARNING")])
def test_a_server_says_at_start_what_it_will_take(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, available: int, level: str
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(from_settings, "machine_memory", lambda: MachineMemory(64 * GB, None, available))
    from_settings.check_memory(ServeSettings(bundle=golden_bundle), read_manifest(golden_bundle))
    (record,) = [record for record in caplog.records if record.getMessage().startswith("memory: ")]
    assert record.levelname == level and f"{available / GB:.1f} GB free" in record.getMessage()
    assert ("lower --" in record.getMessage()) == (level == "WARNING")


SMALL = {
    "slots": 1,
    "queue": 0,
    "max_message_mb": 4,
    "prefix_mb": 16,
    "image_mb": 16,
    "study_mb": 16,
    "upload_mb": 16,
    "parked_mb": 16,
    "reply_mb": 4,
    "request_mb": 8,
    "decode_processes": 1,
    "decode_mb": 2048,
}


def test_hostile_pictures_stay_within_the_budget(golden_bundle: Path, tmp_path: Path) -> None:
    """Twelve PNGs of 64 megapixels, 2.2 MB of message and 2.3 GB of pixels, in a server whose bound is a fraction of that."""
    if Bundle(golden_bundle).manifest.on_gpu:
        pytest.skip("a GPU's libraries alone are assumed to take as much")
    options = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    options += ["--decode-seconds", "120"]  # memory is measured, however busy the machine is
    items = account(BundleShape.of(Bundle(golden_bundle).manifest), ServeSettings(bundle=golden_bundle, **SMALL))
    decoding = [item for item in items if "decoding" in item.what]
    times = (When.START, When.USED, When.PEAK)
    own = total([item for item in items if item not in decoding], Where.HOST, *times)
    assert own < GB, "the bound must tell what is bounded from what is not"
    picture = pb.Image(data=encode(Image.new("RGB", (8000, 8000))))
    with (
        server_process(golden_bundle, tmp_path, *options) as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        decoders = psutil.Process(server.process.pid).children()
        *_, last = report_pb2_grpc.ReportServiceStub(channel).GenerateReport(
            pb.GenerateReportRequest(images=[picture] * 12, options=short_report())
        )
        assert last.result.usage.generated_tokens == 2, "twelve pictures at this bundle's resolution fit its context"
        assert peak(server.process.pid) <= own
        for decoder in decoders:
            assert peak(decoder.pid) <= total(decoding)
        server.stop()


def short_report() -> pb.GenerationOptions:
    return pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=2))


def peak(pid: int) -> int:
    """The most memory that a process had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_operations_page_shows_the_models_table() -> None:
    """Written by `python -m benchmarks.memory_page`."""
    page = memory_page.PAGE.read_text(encoding="utf-8")
    shown = page.partition(memory_page.BEGIN)[2].partition(memory_page.END)[0]
    assert shown.strip() == memory_page.table().strip()
