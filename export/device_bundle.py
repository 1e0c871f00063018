"""Bundles whose engines only the device can build: prepare one, and finish it there with `python -m …export.device_bundle`.

Runs on the device without torch: it takes the package's `tensorrt` extra and the device's own TensorRT.
"""

from __future__ import annotations

import argparse
import os
import shutil
import stat
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from echovlm_edge.export.bundle.bundle_folder import BundleFolder, bundle_folder
from echovlm_edge.export.engines.tensorrt import STEPS, EngineOptions, replace_by_engines
from echovlm_edge.export.engines.tensorrt_module import INSTALL, TensorRT, open_tensorrt
from echovlm_edge.export.progress import Progress
from echovlm_edge.runtime.bundle.manifest import Bundle, Manifest, Part, bundle_id
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings

if TYPE_CHECKING:
    from echovlm_edge.export.targets import Target

SCRIPT = "build_on_device.sh"
PLUGIN = "libechovlm_plugins.so"
AARCH64 = 183  # EM_AARCH64, an ELF header's e_machine (System V ABI)

_SCRIPT = """\
#!/bin/sh
# Builds the TensorRT engines of this bundle on a {device}, in the place of its graphs.
# Needs TensorRT ({versions}) with its Python package, and this package: pip install '.[tensorrt]' in its source folder.
set -eu
exec "${{PYTHON:-python3}}" -m echovlm_edge.export.device_bundle "$(dirname "$0")" "$@"
"""


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


def finish(path: Path, module: str, console: Console) -> Manifest:
    """Build the engines of the bundle at `path`, and atomically replace it by the finished bundle.

    Raises:
        NotPossibleHere: there is no bundle, it is damaged or finished already, or TensorRT is missing or refuses it.
    """
    bundle = Bundle(path, verify=True, finished=False)
    manifest = bundle.manifest
    if manifest.finish_with is None:
        raise NotPossibleHere(f"The bundle {path} is finished already: serve it with echovlm-serve.")
    plugin = path / PLUGIN
    trt = open_tensorrt(module, plugin if plugin.is_file() else None)
    settings = PreprocessSettings.from_config(manifest.preprocess)
    options = EngineOptions.of(manifest.limits, settings.max_pixels, settings.patch_size)
    needed = sum(file.bytes for part in manifest.parts for file in part.files)
    with bundle_folder(path, needed, manifest.bundle_id, replace=True) as folder, Progress(console) as progress:
        for file in manifest.all_files():
            if file.name != SCRIPT:
                os.link(
                    path / file.name, folder.path / file.name
                )  # the same file by another name: no copy of the weights
        with progress.stage("Building engines", total=STEPS * len(manifest.parts)) as advance:
            parts = replace_by_engines(trt, folder.path, manifest.parts, options, advance)
        manifest = with_engines(manifest, parts, trt)
        folder.write_manifest(manifest)
    return manifest


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
    parser = argparse.ArgumentParser(description="Build the engines of a bundle on the device it is for.")
    parser.add_argument("bundle", type=Path, help="the folder that echovlm-build made")
    parser.add_argument(
        "--module", choices=INSTALL, default="tensorrt", help="the TensorRT that builds (default tensorrt)"
    )
    options = parser.parse_args(arguments)

    def command() -> int:
        manifest = finish(options.bundle, options.module, Console(stderr=True))
        for part in manifest.parts:
            print(f"{part.files[0].name}: {part.files[0].bytes / 1e6:,.1f} MB")
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
