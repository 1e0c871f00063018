"""As many threads as this process has processors' time for: quotas of control groups of both versions, and of groups around them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from echovlm_edge.runtime.backends import onnxruntime_session
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.doctor.facts import facts
from echovlm_edge.runtime.profiling.measurement.machine import this_machine
from echovlm_edge.runtime.resources.processors import processor_quota, usable_processors

V2 = "30 23 0:26 {group} {point} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {group} {point} rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
OTHERS = "23 1 8:1 / / rw - ext4 /dev/sda rw\n34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"


def machine(root: Path, cgroup: str, mounts: str, **files: str) -> Path:
    """A root folder; the names of `files` have __ for slashes and _ for dots where there is a dot."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    (root / "proc/self/mountinfo").write_text(OTHERS + mounts)
    for name, text in files.items():
        folder = root / "sys/fs/cgroup" / name.replace("__", "/")
        folder.mkdir(parents=True, exist_ok=True)
        for line in text.split(";"):
            file, _, value = line.partition("=")
            (folder / file).write_text(value + "\n")
    return root


def v2(root: Path, path: str, group: str = "/", **files: str) -> Path:
    return machine(root, f"0::{path}\n", V2.format(group=group, point="/sys/fs/cgroup"), **files)


def v1(root: Path, path: str, group: str = "/", **files: str) -> Path:
    cgroup = f"9:name=systemd:/else\n4:cpuset:/else\n3:cpu,cpuacct:{path}\n0::/else\n"
    return machine(root, cgroup, V1.format(group=group, point="/sys/fs/cgroup/cpu,cpuacct"), **files)


def quota_v1(quota: int, period: int = 100000) -> str:
    return f"cpu.cfs_quota_us={quota};cpu.cfs_period_us={period}"


def test_a_containers_quota(tmp_path: Path) -> None:
    assert processor_quota(v2(tmp_path / "two", "/", **{"": "cpu.max=200000 100000"})) == 2
    assert processor_quota(v2(tmp_path / "part", "/", **{"": "cpu.max=150000 100000"})) == 1.5
    assert processor_quota(v2(tmp_path / "none", "/", **{"": "cpu.max=max 100000"})) is None
    assert processor_quota(v1(tmp_path / "old", "/", **{"cpu,cpuacct": quota_v1(50000)})) == 0.5
    assert processor_quota(v1(tmp_path / "old none", "/", **{"cpu,cpuacct": quota_v1(-1)})) is None


def test_the_tightest_of_the_groups_around_counts(tmp_path: Path) -> None:
    slices = {
        "": "cpu.max=",
        "system.slice": "cpu.max=300000 100000",
        "system.slice__echovlm.service": "cpu.max=max 100000",
        "other.slice": "cpu.max=1000 100000",
    }
    assert processor_quota(v2(tmp_path / "v2", "/system.slice/echovlm.service", **slices)) == 3
    pods = {
        "cpu,cpuacct": quota_v1(-1),
        "cpu,cpuacct__pod": quota_v1(400000, 200000),
        "cpu,cpuacct__pod__one": quota_v1(700000),
    }
    assert processor_quota(v1(tmp_path / "v1", "/pod/one", **pods)) == 2


def test_a_container_that_sees_its_own_group_as_the_mount(tmp_path: Path) -> None:
    """Its path is the host's; the mount shows the container's folder as if it were the outermost."""
    shown = {"cpu,cpuacct": quota_v1(200000), "cpu,cpuacct__inner": quota_v1(100000)}
    assert processor_quota(v1(tmp_path / "own", "/docker/ab12", "/docker/ab12", **shown)) == 2
    assert processor_quota(v1(tmp_path / "inner", "/docker/ab12/inner", "/docker/ab12", **shown)) == 1
    assert processor_quota(v1(tmp_path / "elsewhere", "/docker/other", "/docker/ab12", **shown)) == 2
    for path in ("/../other", "/.."):
        root = v2(tmp_path / f"up {len(path)}", path, **{"": "cpu.max=200000 100000", "other": "cpu.max=1 100000"})
        assert processor_quota(root) == 2


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "0::", "0::/\n\n:::\n4:cpu", "0::/nowhere/at/all", "3:cpu:/\n0::/", "\0\0", "0::/" + "x/" * 3000],
)
@pytest.mark.parametrize("value", ["", "max", "100000", "a b", "-1 100000", "100000 0", "1e5 1e5"])
def test_what_cannot_be_understood_is_no_limit(text: str, value: str, tmp_path: Path) -> None:
    mounts = V2.format(group="/", point="/sys/fs/cgroup") + "short - cgroup2\n" + "a b c d e f - x\n"
    assert processor_quota(machine(tmp_path, text, mounts, **{"": f"cpu.max={value}"})) is None
    assert processor_quota(tmp_path / "nowhere") is None


def test_a_mount_point_with_a_space(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", V2.format(group="/", point="/sys/fs/cgroup/a\\040b"), **{"a b": "cpu.max=1 2"})
    assert processor_quota(root) == 0.5


def test_threads_follow_the_quota_and_the_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    for name, quota, threads in (
        ("tiny", "1000 100000", 1),
        ("one and a half", "150000 100000", 2),
        ("two", "200000 100000", 2),
        ("many", "9900000 100000", 64),
        ("all", "max 100000", 64),
    ):
        root = v2(tmp_path / name, "/", **{"": f"cpu.max={quota}"})
        assert usable_processors(root) == threads, name
        assert this_machine(root).cores == threads, name
    found = facts(tmp_path / "one and a half")
    assert (found.cores_allowed, found.cpu_quota) == (64, 1.5)


def test_onnx_runtime_makes_as_many_threads_and_pins_none_under_a_quota(
    golden_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    bundle, pinned = Bundle(golden_bundle), "session.intra_op_thread_affinities"
    monkeypatch.setattr(onnxruntime_session, "usable_processors", lambda: 2)
    options = onnxruntime_session.session_options(bundle, None)
    assert options.intra_op_num_threads == 2
    with pytest.raises(RuntimeError):
        options.get_session_config_entry(pinned)
    monkeypatch.setattr(onnxruntime_session, "usable_processors", lambda: 64)
    options = onnxruntime_session.session_options(bundle, None)
    assert options.intra_op_num_threads == 64 and options.get_session_config_entry(pinned)
    assert onnxruntime_session.session_options(bundle, 5).intra_op_num_threads == 5
