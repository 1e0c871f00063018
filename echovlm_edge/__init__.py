"""EchoVLM Edge: EchoVLM, a vision-language model for ultrasound, from its checkpoint to a report service.

The names below are the package's front door; each is imported when it is first used, so that a client needs neither the engine
nor torch. Everything else may change between minor versions.

Examples:
    Ask a server (`echovlm-serve`), which listens on 127.0.0.1:50051 unless it is told otherwise:

    >>> from echovlm_edge import ReportClient, ServerBusy
    >>> client = ReportClient(address)
    >>> report = client.report([picture], language="en", region="thyroid")
    >>> print(report.findings)
    A nodule.
    >>> print(report.impression)
    Benign.
    >>> client.ask("Is it solid?", [picture]).text
    'Findings: A nodule. Impression: Benign.'

    A study's images are sent as they are taken, and are read before they are asked about:

    >>> with client.study() as study:
    ...     added = study.add(picture)
    ...     text = study.report().text
    >>> added.number
    1

    A question that continues what was said before:

    >>> talk = client.conversation()
    >>> report, answer = talk.report([picture]), talk.ask("Is it solid?")
    >>> len(talk.turns)
    2
    >>> client.close()
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

# ONNX Runtime's wheels for Linux keep an identifier of the device and send telemetry, Ray sends usage statistics: each reads its variable
# when it is imported. What somebody has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

if TYPE_CHECKING:
    from echovlm_edge.export.build_engines import build
    from echovlm_edge.runtime.client.async_report_client import AsyncConversation, AsyncReportClient, AsyncStudy
    from echovlm_edge.runtime.client.report import (
        AddedImage,
        OpenStudy,
        Report,
        ReportEvent,
        ShownPicture,
        Timings,
        Usage,
    )
    from echovlm_edge.runtime.client.report_client import Conversation, ReportClient, Study
    from echovlm_edge.runtime.contracts.errors import (
        DeadlineExceeded,
        InvalidInput,
        NotFound,
        NotPossibleHere,
        ServerBusy,
        ServerUnavailable,
        StudyReplaced,
        Unauthenticated,
        UnusableForm,
        UserError,
    )
    from echovlm_edge.runtime.contracts.image_path import ImagePath
    from echovlm_edge.runtime.contracts.request import (
        FrameSelection,
        GenerationRequest,
        ImageInput,
        Sampling,
        StageStarted,
        TextDelta,
    )
    from echovlm_edge.runtime.contracts.text_form import ChoiceForm, PatternForm, SchemaForm, SectionsForm
    from echovlm_edge.runtime.engine.report_engine import ReportEngine

__all__ = [
    "AddedImage",
    "AsyncConversation",
    "AsyncReportClient",
    "AsyncStudy",
    "ChoiceForm",
    "Conversation",
    "DeadlineExceeded",
    "FrameSelection",
    "GenerationRequest",
    "ImageInput",
    "ImagePath",
    "InvalidInput",
    "NotFound",
    "NotPossibleHere",
    "OpenStudy",
    "PatternForm",
    "Report",
    "ReportClient",
    "ReportEngine",
    "ReportEvent",
    "Sampling",
    "SchemaForm",
    "SectionsForm",
    "ServerBusy",
    "ServerUnavailable",
    "ShownPicture",
    "StageStarted",
    "Study",
    "StudyReplaced",
    "TextDelta",
    "Timings",
    "Unauthenticated",
    "UnusableForm",
    "Usage",
    "UserError",
    "__version__",
    "build",
]

__version__ = version("echovlm-edge")

_CLIENT, _CONTRACTS = "echovlm_edge.runtime.client", "echovlm_edge.runtime.contracts"
_MODULES = {
    "echovlm_edge.export.build_engines": ("build",),
    "echovlm_edge.runtime.engine.report_engine": ("ReportEngine",),
    f"{_CLIENT}.report_client": ("Conversation", "ReportClient", "Study"),
    f"{_CLIENT}.async_report_client": ("AsyncConversation", "AsyncReportClient", "AsyncStudy"),
    f"{_CLIENT}.report": ("AddedImage", "OpenStudy", "Report", "ReportEvent", "ShownPicture", "Timings", "Usage"),
    f"{_CONTRACTS}.errors": (
        *("DeadlineExceeded", "InvalidInput", "NotFound", "NotPossibleHere"),
        *("ServerBusy", "ServerUnavailable", "StudyReplaced", "Unauthenticated", "UnusableForm", "UserError"),
    ),
    f"{_CONTRACTS}.image_path": ("ImagePath",),
    f"{_CONTRACTS}.request": (
        *("FrameSelection", "GenerationRequest", "ImageInput", "Sampling", "StageStarted", "TextDelta"),
    ),
    f"{_CONTRACTS}.text_form": ("ChoiceForm", "PatternForm", "SchemaForm", "SectionsForm"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
_EXTRAS = {"build": "export"}  # what an extra has to be installed for


if not TYPE_CHECKING:  # a type checker sees the names above and no others

    def __getattr__(name: str) -> Any:
        """Import a name of the front door when it is first used."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            found = getattr(import_module(_HOMES[name]), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in ("echovlm_edge", "echovlm"):
                raise
            from echovlm_edge.runtime.contracts.extras import install_hint

            extra = _EXTRAS.get(name)
            fix = install_hint(extra) if extra else f"pip install {error.name}"
            raise ImportError(f"{name} needs {error.name}, which is not installed: {fix}.", name=error.name) from None
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    """What completion offers."""
    return sorted(__all__)
