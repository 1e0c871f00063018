"""Open the module `tensorrt` or `tensorrt_rtx` with our plugin, behind one interface, and keep the errors that it logs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from echovlm_edge.plugins.dual_path_moe.library import plugin_path
from echovlm_edge.runtime.backends.gpu.tensorrt_log import TensorRTErrors, error_logger
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint

INSTALL = {
    "tensorrt_rtx": f"install TensorRT-RTX with {install_hint('rtx')}",
    "tensorrt": "install TensorRT's Python package (JetPack and DGX OS have it as python3-libnvinfer; a virtual environment sees it if "
    "it was made with --system-site-packages)",
}
INSTALL_PLUGIN = "install a C++ compiler and TensorRT's headers (pip install --no-deps kernel-lens, or TENSORRT_ROOT), then echovlm-edge"


@dataclass(frozen=True)
class TensorRT:
    """An opened module.

    Attributes:
        name: `tensorrt` or `tensorrt_rtx`.
        version: of the module.
        api: the module itself.
        logger: what its builders and parsers are given.
        errors: what it logged as errors since they were last cleared.
    """

    name: str
    version: str
    api: Any
    logger: Any
    errors: TensorRTErrors

    def release(self) -> tuple[int, int]:
        """Return the major and minor version of TensorRT, by which operators differ; TensorRT-RTX has those of TensorRT 10.15 and later."""
        if self.name == "tensorrt_rtx":
            return (10, 15)
        major, minor, *_ = self.version.split(".")
        return (int(major), int(minor))


def check_installed(name: str, plugin: Path | None = None) -> None:
    """Refuse before anything is built if a module or the plugin is missing; the sentence says what to install.

    Raises:
        NotPossibleHere: one of them is, or both.
    """
    missing = {}
    if importlib.util.find_spec(name) is None:
        missing[f"the Python module {name}"] = INSTALL[name]
    if (plugin or plugin_path()) is None:
        missing["the plugin libechovlm_plugins.so, which this install was made without"] = INSTALL_PLUGIN
    if missing:
        raise NotPossibleHere(
            f"Engines for this target need {' and '.join(missing)}: {'; '.join(dict.fromkeys(missing.values()))}."
        )


def open_tensorrt(name: str, plugin: Path | None = None) -> TensorRT:
    """Import a module and load our plugin (`plugin`, or the one of this install) into its registry.

    Raises:
        NotPossibleHere: a module or the plugin is missing or cannot be loaded.
    """
    check_installed(name, plugin)
    try:
        api: Any = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise NotPossibleHere(f"The Python module {name} cannot be loaded ({error}): {INSTALL[name]}.") from None
    if name == "tensorrt_rtx":
        _name_library_as_the_parser_does()
    library = plugin or plugin_path()
    registry = api.get_plugin_registry()
    if registry.get_creator("DualPathMoE", "1", "echovlm") is None and registry.load_library(str(library)) is None:
        fix = "copy the bundle again, or build it with a --device-plugin for this machine" if plugin else INSTALL_PLUGIN
        raise NotPossibleHere(f"The plugin {library} cannot be loaded into {name} {api.__version__}: {fix}.")
    errors = TensorRTErrors()
    return TensorRT(name, api.__version__, api, error_logger(api, errors), errors)


def _name_library_as_the_parser_does() -> None:
    """Put a link libtensorrt_rtx.so next to libtensorrt_rtx.so.1 in the wheel's folder.

    TensorRT-RTX's parser opens the library by the first, bare name at its first use and ends the process where the loader does
    not find it; the wheel ships the second name only. The parser's search path is the folder it lies in ($ORIGIN), so no
    other place serves. The link is relative, and making it is atomic: another process sees it or does not.

    Raises:
        NotPossibleHere: the folder cannot be written; the sentence has the command that makes the link.
    """
    found = importlib.util.find_spec("tensorrt_rtx_libs")
    if found is None or not found.submodule_search_locations:
        return  # not from the wheels: an installed library has both names
    link = Path(next(iter(found.submodule_search_locations))) / "libtensorrt_rtx.so"
    target = next((file.name for file in sorted(link.parent.glob("libtensorrt_rtx.so.*"))), None)
    if link.exists() or target is None:
        return
    try:
        with contextlib.suppress(FileExistsError):
            link.symlink_to(target)
    except OSError as error:
        raise NotPossibleHere(
            f"TensorRT-RTX's parser needs the link {link}, which cannot be made ({error.strerror}): "
            f"run ln -s {target} {link} as the owner of that folder."
        ) from None
