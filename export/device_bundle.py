"""Bundles whose engines only the device can build: prepare one, and finish it there with `python -m …export.device_bundle`.

Runs on the device without torch: it takes the package's `tensorrt` extra and the device's own TensorRT.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from echovlm_edge.export.bundle.bundle_folder import BundleFolder, bundle_folder
from echovlm_edge.export.device_checks import check_device, check_module, warnings
from echovlm_edge.export.engines.tensorrt import STEPS, EngineOptions, replace_by_engines
from echovlm_edge.export.engines.tensorrt_module import INSTALL, TensorRT, open_tensorrt
from echovlm_edge.export.progress import Progress
from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle, FileSpec, Manifest, Part, bundle_id
from echovlm_edge.runtime.bundle.signature import SIGNATURE_SUFFIX, PublicKey
from echovlm_edge.runtime.bundle.signers import add_signers, read_signers
from echovlm_edge.runtime.contracts.command import REPEATED, run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings
from echovlm_edge.runtime.resources.resolved import resolved

if TYPE_CHECKING:
    from echovlm_edge.export.targets import Target

SCRIPT = "build_on_device.sh"
PLUGIN = "libechovlm_plugins.so"
AARCH64 = 183  # EM_AARCH64, an ELF header's e_machine (System V ABI)

_SCRIPT = """\
#!/bin/sh
# Builds the TensorRT engines of this bundle on a {device}, in the place of its graphs. Killed, it continues when it is run again.
# Needs TensorRT ({versions}) with its Python package, and this package with its extras serve and tensorrt: docs/jetson.md.
set -eu
python="${{PYTHON:-python3}}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $python is not Python 3.11 or newer: PYTHON=/opt/echovlm/bin/python sh $0" >&2
    exit 2
fi
if ! "$python" -c 'import echovlm_edge' 2>/dev/null; then
    echo "error: $python has no echovlm-edge: install it there, or name the Python that has it: PYTHON=/opt/echovlm/bin/python sh $0" >&2
    exit 2
fi
exec "$python" -c 'import sys; from echovlm_edge.commands import build_on_device; sys.exit(build_on_device(sys.argv[1:]))' \\
    "$(dirname "$0")" "$@"
"""
_PART = TypeAdapter(Part)


def leave_to_device(folder: BundleFolder, manifest: Manifest, target: Target, plugin: Path | None) -> Manifest:
    """Add the finishing script, and the plugin if there is one, to a bundle for another machine.

    Args:
        folder: the bundle being written.
        manifest: its description so far.
        target: the device.
        plugin: `libechovlm_plugins.so` built for the device and checked by `check_plugin`; without it, the bundle uses the one in
            the device's install of the package.

    """
    assert target.device is not None
    script = folder.path / SCRIPT
    folder.write_text(SCRIPT, _SCRIPT.format(device=target.device.name, versions=target.tensorrt_versions))
    script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    added = [SCRIPT]
    if plugin:
        shutil.copyfile(plugin, folder.path / PLUGIN)
        added.append(PLUGIN)
    return replace(manifest, files=(*manifest.files, *map(folder.describe, added)), finish_with=SCRIPT)


def with_engines(manifest: Manifest, parts: Sequence[Part], trt: TensorRT) -> Manifest:
    """Make the manifest of a bundle whose parts have become engines."""
    files = tuple(file for file in manifest.files if file.name != SCRIPT)
    return replace(
        manifest,
        parts=tuple(parts),
        files=files,
        bundle_id=bundle_id((*files, *(file for part in parts for file in part.files))),
        toolchain={**manifest.toolchain, trt.name: trt.version},
        finish_with=None,
    )


def finish(path: Path, module: str, console: Console, signers: Sequence[PublicKey] = ()) -> Manifest:
    """Build the engines of the bundle at `path`, and atomically replace it by the finished bundle.

    A build that was killed continues with the engine that it was building.

    Raises:
        NotPossibleHere: there is no bundle, it is damaged, not signed by one of the `signers` or finished already, or TensorRT or the
            machine cannot build it.
    """
    bundle = Bundle(path, verify=True, finished=False, signers=signers)
    path, manifest = resolved(bundle.path), bundle.manifest  # the loader looks for a plugin without a folder elsewhere
    if manifest.finish_with is None:
        raise NotPossibleHere(f"The bundle {path} is finished already: serve it with echovlm-serve.")
    check_module(module)
    plugin = path / PLUGIN
    trt = open_tensorrt(module, plugin if plugin.is_file() else None)
    check_device(path, manifest, trt)
    for sentence in warnings(manifest):
        console.print(sentence, style="yellow", highlight=False, markup=False, soft_wrap=True)
    settings = PreprocessSettings.from_config(manifest.preprocess)
    options = EngineOptions.of(manifest.limits, settings.max_pixels, settings.patch_size)
    needed = sum(file.bytes for part in manifest.parts for file in part.files)
    identity = f"{manifest.bundle_id} {trt.name} {trt.version}"
    with bundle_folder(path, needed, identity, replace=True) as folder:
        _link(path, folder, (file for file in manifest.files if file.name != SCRIPT))
        with (
            Progress(console) as progress,
            folder.journal,
            progress.stage("Building engines", total=STEPS * len(manifest.parts)) as advance,
        ):
            parts = []
            for number, part in enumerate(manifest.parts, 1):
                built = _kept(folder, part)
                progress.note(
                    f"Engine {number} of {len(manifest.parts)}, {part.name}{': built before' if built else ''}"
                )
                if built:
                    advance(STEPS)
                else:
                    _link(path, folder, part.files)
                    (built,) = replace_by_engines(trt, folder.path, (part,), options, advance)
                    _keep(folder, built)
                parts.append(built)
        for part in parts:
            _description(folder, part).unlink()
        manifest = with_engines(manifest, parts, trt)
        folder.write_manifest(manifest)
    return manifest


def _link(path: Path, folder: BundleFolder, files: Iterable[FileSpec]) -> None:
    """Give files of the bundle at `path` a second name in the folder: no copy of the weights."""
    for file in files:
        (folder.path / file.name).unlink(missing_ok=True)
        os.link(path / file.name, folder.path / file.name)


def _description(folder: BundleFolder, part: Part) -> Path:
    return folder.path / f".{part.name}.json"


def _keep(folder: BundleFolder, built: Part) -> None:
    """Record an engine, so that it is not built again."""
    _description(folder, built).write_bytes(_PART.dump_json(built))
    folder.journal.record(built.name, built.files[0].sha256)


def _kept(folder: BundleFolder, part: Part) -> Part | None:
    """Return the part whose engine a build that was killed has left; None where there is none, or not all of it."""
    if part.name not in folder.journal.known:
        return None
    try:
        built = _PART.validate_json(_description(folder, part).read_bytes())
        return built if folder.describe(built.files[0].name) == built.files[0] else None
    except (OSError, ValidationError):
        return None


def check_plugin(plugin: Path) -> None:
    """Refuse a plugin that no device can load.

    Raises:
        NotPossibleHere: it is missing or for another processor.
    """
    try:
        with plugin.open("rb") as file:
            header = file.read(20)
    except OSError as error:
        raise NotPossibleHere(f"The plugin {plugin} cannot be read ({error.strerror}): see --device-plugin.") from None
    if header[:4] != b"\x7fELF" or int.from_bytes(header[18:20], "little") != AARCH64:
        raise NotPossibleHere(
            f"The plugin {plugin} is not built for aarch64: cross-compile it as plugins/dual_path_moe/tensorrt/README.md says."
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=SCRIPT,
        usage=f"[PYTHON=PYTHON] {SCRIPT} [options]",
        description="Build the engines of a bundle on the device it is for.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="named by the script: the folder that it is in")
    add_signers(parser, REPEATED)
    parser.add_argument(
        "--module", choices=INSTALL, default="tensorrt", help="the TensorRT that builds (default tensorrt)"
    )
    options = parser.parse_args(arguments)

    def command() -> int:
        signers, folder = (
            read_signers(options),
            options.bundle.absolute(),
        )  # it may be the current one, which is replaced
        signed = (folder / f"{MANIFEST}{SIGNATURE_SUFFIX}").exists()
        manifest = finish(folder, options.module, Console(stderr=True), signers)
        for part in manifest.parts:
            print(f"{part.files[0].name}: {part.files[0].bytes / 1e6:,.1f} MB")
        if signed:
            print(f"The signature was of the bundle without engines: echovlm-bundle sign {folder} --key KEY")
        print(f"Install it: echovlm-bundle install {folder} FOLDER; or serve it: echovlm-serve --bundle {folder}")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
