"""`echovlm-doctor`: what a machine of files says, what is wrong with it, which bundles fit."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.doctor import command
from echovlm_edge.runtime.doctor.checks import Level, findings, fits, target_for
from echovlm_edge.runtime.doctor.facts import Facts, facts
from echovlm_edge.runtime.resources.nvml import Gpu
from echovlm_edge.runtime.serving.supervision import serve_command
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings

GB = 10**9
FINE = Facts(
    "x86_64",
    "a CPU",
    4,
    4,
    ("avx2", "fma"),
    64 * GB,
    48 * GB,
    0,
    0,
    ("performance",),
    kernels="avx2",
    onnxruntime="1.32",
)
RTX = Gpu("NVIDIA RTX 4000 Ada", "580.1", 20 * GB, "8.9", 300, 2175, 130.0, 130.0)


def said(told: Facts) -> str:
    return " ".join(f"{finding.what} {finding.fix}" for finding in findings(told))


def test_a_machine_of_files(tmp_path: Path) -> None:
    for name, text in {
        "proc/cpuinfo": "processor: 0\nmodel name : a CPU of files\nflags : sse avx2 avx512_vnni\n\nprocessor: 1\n",
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 600 kB\nSwapTotal: 100 kB\nSwapFree: 40 kB\n",
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\nCPU_A78 0 MAX_FREQ -1\n< POWER_MODEL ID=2 NAME=MODE_30W >\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "2200000\n",
        "sys/fs/cgroup/memory.max": "max\n",
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    told = facts(tmp_path)
    assert (told.cpu, told.features, told.memory, told.swap_used) == (
        "a CPU of files",
        ("avx2", "avx512_vnni"),
        1024000,
        61440,
    )
    assert (told.device, told.jetpack, told.power_modes) == (
        "NVIDIA Jetson AGX Orin",
        "L4T 36.4.3",
        {0: "MAXN", 2: "MODE_30W"},
    )
    assert (told.governors, told.clock_max, told.container_limit, told.cpu_quota) == (("powersave",), 2200, None, 1.5)
    assert target_for(told) == "jetson-orin"
    assert facts(tmp_path / "empty").memory == 0  # a machine that says nothing is no error


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"governors": ("powersave",)}, "cpupower frequency-set -g performance"),
        ({"kernels": None}, "Install a C++ compiler"),
        ({"features": ()}, "The CPU lacks avx2"),
        ({"cores_allowed": 2}, "may use 2 of 4 cores"),
        ({"cpu_quota": 1.5}, "until then 2 threads compute"),
        ({"swap": 8 * GB, "swap_used": 4 * GB}, "swapoff"),
        ({"container_limit": 2 * GB}, "MemoryMax"),
        ({"power_mode": "MODE_15W", "power_modes": {0: "MAXN", 2: "MODE_15W"}}, "sudo nvpmodel -m 0"),
        ({"jetpack": "L4T 36.4.3"}, "swap file on NVMe"),
        ({"gpus": (replace(RTX, power_limit=70.0),), "tensorrt": {"tensorrt": "10.15"}}, "nvidia-smi -pl 130"),
        ({"gpus": (RTX,)}, "[rtx]"),
    ],
)
def test_what_is_misconfigured_and_its_fix(change: dict[str, object], says: str) -> None:
    assert says in said(replace(FINE, **change))  # type: ignore[arg-type]


def test_a_machine_that_is_right_has_no_findings() -> None:
    assert findings(FINE) == []
    maxn = replace(FINE, power_mode="MAXN_SUPER", power_modes={0: "15W", 2: "MAXN_SUPER"})
    assert findings(maxn) == []


@pytest.mark.parametrize(
    ("change", "target"),
    [
        ({}, "cpu"),
        ({"gpus": (RTX,)}, "rtx"),
        ({"gpus": (replace(RTX, name="Tesla T4", capability="7.5"),)}, "cuda"),
        ({"gpus": (replace(RTX, name="NVIDIA GB10", capability="12.1"),), "architecture": "aarch64"}, "dgx-spark"),
        ({"device": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"}, "jetson-orin-nano"),
        ({"device": "NVIDIA Jetson AGX Thor Developer Kit"}, "jetson-thor"),
    ],
)
def test_which_target_a_machine_wants(change: dict[str, object], target: str) -> None:
    assert target_for(replace(FINE, **change)) == target  # type: ignore[arg-type]


def test_which_bundles_fit(golden_bundle: Path, tmp_path: Path) -> None:
    assert fits(golden_bundle, FINE).level is Level.FINE
    assert "--target rtx would use the GPU" in fits(golden_bundle, replace(FINE, gpus=(RTX,))).what
    small = fits(golden_bundle, replace(FINE, available=2 * GB))
    assert small.level is Level.WRONG and "and this machine has 2.0 GB free" in small.what
    assert "--prefix-mb to 0" in small.fix
    crowded = fits(golden_bundle, replace(FINE, available=12 * GB))
    assert crowded.level is Level.SLOW and "--decode-mb" in crowded.fix
    modest = ServeSettings(
        bundle=golden_bundle, prefix_mb=0, parked_mb=0, study_mb=64, max_message_mb=8, decode_mb=1024
    )
    assert fits(golden_bundle, replace(FINE, available=12 * GB), modest).level is Level.FINE
    assert "There is no bundle at" in fits(tmp_path, FINE).what
    assert fits(golden_bundle, replace(FINE, kernels=None)).level is Level.WRONG
    other = tmp_path / "other"
    shutil.copytree(golden_bundle, other)
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps(manifest | {"target": "jetson-orin"}))
    elsewhere = fits(other, FINE)
    assert elsewhere.level is Level.WRONG and "--target cpu" in elsewhere.fix
    assert elsewhere.fix == "Build it with --target cpu."
    assert fits(other, replace(FINE, gpus=(RTX,))).fix == "Build it with --target rtx or cpu."
    (other / MANIFEST).write_text(json.dumps(manifest | {"target": "cuda"}))
    without = fits(other, replace(FINE, gpus=(RTX,)))
    assert without.level is Level.WRONG and "ECHOVLM_CUDA_KERNELS=ON" in without.fix and "--spell-out" in without.fix
    assert fits(other, replace(FINE, gpus=(RTX,), gpu_kernels=True)).level is Level.FINE
    next(other.glob("*.data")).unlink()
    assert fits(other, FINE).level is Level.WRONG


def test_the_command(golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--json", "--bundle", str(golden_bundle)]) in (0, 1)
    told = json.loads(capsys.readouterr().out)
    assert told["machine"]["memory"] > 0 and told["target"] and len(told["bundles"]) == 1
    shutil.copytree(golden_bundle, tmp_path / "bundles" / "one")
    assert command.main(["--bundle", str(tmp_path / "bundles")]) == command.main(["--bundle", str(golden_bundle)])
    assert "bundles/one" in "".join(capsys.readouterr().out.split())
    assert command.main(["--bundle", str(tmp_path / "none")]) == 1


def test_a_flipped_byte_is_seen_when_hashes_are_asked_for(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without, it says that they were not compared."""
    monkeypatch.setattr(command, "facts", lambda: FINE)
    bundle = Path(shutil.copytree(golden_bundle, tmp_path / "bundle"))
    assert command.main(["--bundle", str(bundle), "--verify"]) == 0
    assert "--verify" not in capsys.readouterr().out
    raw = (bundle / "decoder.data").read_bytes()
    (bundle / "decoder.data").write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    assert command.main(["--bundle", str(bundle)]) == 0
    assert "hashes were not: --verify" in " ".join(capsys.readouterr().out.split())
    assert command.main(["--bundle", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"] is False
    assert command.main(["--bundle", str(bundle), "--verify"]) == 1
    assert "decoder.datahaschanged" in "".join(capsys.readouterr().out.split())


def test_the_command_judges_what_will_be_served(
    golden_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options typed go before those of the configuration file, whose bundle is judged where none is named."""
    monkeypatch.setattr(command, "facts", lambda: replace(FINE, available=8 * GB))
    config = tmp_path / "serve.toml"
    config.write_text(f'bundle = "{golden_bundle}"\nprefix_mb = 8000\ndecode_mb = 1024\nmax_message_mb = 8\n')

    def bundles(*arguments: object) -> list[dict[str, str]]:
        command.main(["--json", *map(str, arguments)])
        found: list[dict[str, str]] = json.loads(capsys.readouterr().out)["bundles"]
        return found

    (wrong,) = bundles("--config", config)
    assert wrong["level"] == "wrong" and "--prefix-mb to " in wrong["mend"]
    (fine,) = bundles("--config", config, "--prefix-mb", 0)
    assert fine["level"] == "fine"
    (named,) = bundles("--config", config, "--prefix-mb", 0, "--bundle", tmp_path / "none")
    assert "There is no bundle at" in named["what"]
    assert command.main(["--config", str(tmp_path / "nowhere.toml")]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    (
        ('tls_certificate = "server.pem"\ntls_key = "server.key"', "server.pem cannot be read"),
        (
            'tls_certificate = "broken.pem"\ntls_key = "broken.pem"',
            "not a PEM certificate and the key that belongs to it",
        ),
        ('clients = "clients.toml"', "clients.toml"),
        ('listen = "0.0.0.0:50051"', "would be served without TLS"),
        ('require_signature = ["vendor.pub"]', "vendor.pub"),
    ),
)
def test_a_configuration_that_the_server_refuses_is_wrong(
    golden_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.pem").write_text("no certificate")
    Path("serve.toml").write_text(f'bundle = "{golden_bundle}"\n{options}\n')
    assert command.main(["--config", "serve.toml", "--json"]) == 1
    wrong = [each["what"] for each in json.loads(capsys.readouterr().out)["findings"] if each["level"] == "wrong"]
    assert any("echovlm-serve --config serve.toml would not start" in each and says in each for each in wrong), wrong
    assert serve_command.main(["--config", "serve.toml"]) == 2, "the server says the same, before it loads anything"
    assert command.main(["--bundle", str(golden_bundle), "--slots", "0"]) == 2
    assert "--slots must be between 1 and 256" in capsys.readouterr().err


def test_options_beyond_the_bundle_are_found(golden_bundle: Path, tmp_path: Path) -> None:
    limit = Bundle(golden_bundle).manifest.limits.max_sequence
    found = fits(golden_bundle, FINE, ServeSettings(bundle=golden_bundle, max_sequence=limit + 1))
    assert found.level is Level.WRONG and f"the bundle's context of {limit} tokens" in found.what
    other = Path(shutil.copytree(golden_bundle, tmp_path / "other"))
    manifest = json.loads((other / MANIFEST).read_text())
    (other / MANIFEST).write_text(json.dumps(manifest | {"target": "rtx"}))
    card = replace(FINE, gpus=(RTX,))
    assert (
        "--slots 8 is more than the 1 that the bundle decodes together"
        in fits(other, card, ServeSettings(bundle=other, slots=8)).what
    )
    assert fits(other, card, ServeSettings(bundle=other)).level is Level.FINE
