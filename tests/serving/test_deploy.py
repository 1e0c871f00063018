"""The systemd unit: systemd itself reads it, finds it tight, and its command line is one that the server takes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from echovlm_edge.runtime.bundle.loads import LOADS
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.supervision.serve_command import main as serve
from echovlm_edge.runtime.serving.supervision.serve_settings import as_toml, read_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "echovlm-serve.service"
GPU = DEPLOY / "echovlm-serve.service.d" / "gpu.conf"
MAX_EXPOSURE = 2.5  # of systemd's 10; 2.1 when it was written
MAX_EXPOSURE_WITH_GPU = 2.8  # the devices are seen, and who may open them
# What CUDA opens on a GPU and on a Jetson (JetPack 5 to 7).
DEVICES = (
    *("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-caps/nvidia-cap1"),
    *("nvhost-ctrl", "nvhost-gpu", "nvmap", "nvgpu/igpu0/ctrl", "host1x-fence", "dri/renderD128"),
)

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="this machine has no systemd-analyze"
)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a command that is there."""
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/echovlm/bin/echovlm-serve", "/bin/true"))
    return copy


@pytest.fixture
def unit_with_gpu(unit: Path) -> Path:
    """Make the same unit with the drop-in for a GPU in the folder where systemd looks for it."""
    folder = unit.with_name(f"{unit.name}.d")
    folder.mkdir()
    shutil.copy(GPU, folder)
    return unit


def settings_of(*files: Path) -> dict[str, list[str]]:
    """What the service's section of a unit says with its drop-ins, by key, in order."""
    found: dict[str, list[str]] = {}
    for file in files:
        _, _, section = file.read_text().partition("[Service]\n")
        for line in section.partition("\n[")[0].splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found.setdefault(key, []).append(value)
    return found


def exposure(unit: Path) -> float:
    done = analyze("security", "--offline=true", "--no-pager", unit)
    if "Unknown option" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd cannot look at a unit offline")
    found = re.search(r"exposure level for .*: ([\d.]+)", done.stdout)
    assert found, done.stdout[-400:]
    return float(found[1])


def analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_reads_it_without_complaint(unit: Path) -> None:
    done = analyze("verify", unit)
    assert done.returncode == 0 and UNIT.name not in done.stderr, done.stderr


@needs_systemd
def test_systemd_finds_it_tight(unit: Path) -> None:
    assert exposure(unit) <= MAX_EXPOSURE


@needs_systemd
def test_systemd_reads_the_drop_in_for_a_gpu_and_finds_it_tight(unit_with_gpu: Path) -> None:
    done = analyze("verify", unit_with_gpu)
    assert done.returncode == 0 and not re.search(r"gpu\.conf|echovlm-serve", done.stderr), done.stderr
    alone = exposure(unit_with_gpu)
    assert alone <= MAX_EXPOSURE_WITH_GPU
    shutil.rmtree(unit_with_gpu.with_name(f"{unit_with_gpu.name}.d"))
    assert alone > exposure(unit_with_gpu), "systemd did not read the drop-in"


def test_a_gpu_can_be_used_with_the_drop_in_and_nothing_else_can() -> None:
    settings = settings_of(UNIT, GPU)
    assert settings["PrivateDevices"][-1] == "no" and settings["ProcSubset"][-1] == "all"
    assert settings["DevicePolicy"] == ["closed"], "without it every device could be opened"
    assert {"video", "render"} <= set(settings["SupplementaryGroups"][-1].split())
    allowed = [device.removesuffix(" rw") for device in settings["DeviceAllow"]]
    assert all(re.fullmatch(r"(char-|/dev/)[\w*-]+", device) for device in allowed), "a path takes no wildcard"
    for device in DEVICES:
        # The group of a node in /proc/devices is its driver's name, with which the node's begins.
        group = f"char-{'drm' if device.startswith('dri/') else device}"
        assert any(fnmatch(group, pattern) or pattern == f"/dev/{device}" for pattern in allowed), device
    for device in ("sda", "mem", "kvm", "fuse", "video0", "tty0"):
        assert not any(fnmatch(f"char-{device}", pattern) or pattern == f"/dev/{device}" for pattern in allowed)


def test_its_command_line_is_one_that_the_server_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found
    command = found[1].replace("/etc/echovlm/serve.toml", str(DEPLOY / "serve.toml"))
    # The clients file is not here: it is what the server stumbles over, after all options were understood.
    assert serve(shlex.split(command)[1:]) == 2
    assert "clients file /etc/echovlm/clients.toml cannot be read" in capsys.readouterr().err


def test_the_configuration_file_has_every_option_as_the_server_explains_it() -> None:
    settings = read_settings(["--config", str(DEPLOY / "serve.toml")])
    assert settings and as_toml(settings) == (DEPLOY / "serve.toml").read_text(), (
        "rewrite it: echovlm-serve --config deploy/serve.toml --print-config"
    )


def test_the_server_may_write_where_it_records_its_loads_and_nowhere_else() -> None:
    settings, unit = read_settings(["--config", str(DEPLOY / "serve.toml")]), settings_of(UNIT)
    assert settings and [f"/var/lib/{unit['StateDirectory'][0]}"] == [str(settings.bundle / LOADS)]
    assert unit["ProtectSystem"] == ["strict"] and "ReadWritePaths" not in unit


def test_the_clients_file_to_begin_with_can_be_read() -> None:
    assert ClientsFile(DEPLOY / "clients.toml").find(None, ["workstation.radiology.example"]).name == "workstation"


def test_what_confines_the_decoding_processes_is_allowed() -> None:
    """Without these calls the processes would say that the server's own unit keeps them from giving up what they can."""
    found = re.search(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found and {"unshare", "seccomp", "landlock_create_ruleset", "landlock_restrict_self"} <= set(
        found[1].split()
    )
    spaces = re.search(r"^RestrictNamespaces=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert spaces and {"user", "net", "ipc"} <= set(spaces[1].split())
