"""List the documents that a caller asked for, and check them before the call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.tasks import Language, Task

WriteDocument = Callable[[pb.Result, str], bytes]  # of a result and the id of its call


def asked_documents(
    sr: Path | None, fhir: Path | None, images: Sequence[SentImage], language: Language, task: Task = Task.REPORT
) -> list[tuple[Path, WriteDocument]]:
    """List the files that were asked for, each with the function that makes its bytes; `images`, `language` and `task` are the call's.

    Libraries are imported only where they are needed. Documents refer to the frames that the result lists; if it lists none, to
    those that were asked for.

    Raises:
        InvalidInput: a document cannot refer to the images, both documents have the same path, or the text is not for a document.
        NotPossibleHere: a library or a folder is missing.
    """
    asked: list[tuple[Path, WriteDocument]] = []
    if not (sr or fhir):
        return asked
    if task.closed:
        raise InvalidInput(
            "The answer to a statement or to options means nothing without them, and a document has no place for these: leave "
            "out --sr and --fhir."
        )
    if sr == fhir:
        raise InvalidInput(f"--sr and --fhir are both {sr}: give two files.")
    for path in (sr, fhir):
        if path and not path.parent.is_dir():
            raise NotPossibleHere(f"The folder {path.parent} is not there: create it first.")
    from echovlm_edge.runtime.clinical.source_images import as_shown, source_images

    sources = source_images(images)
    if sr:
        from echovlm_edge.runtime.clinical.structured_report import structured_report

        if not sources:
            raise InvalidInput("A DICOM SR belongs to a study: send at least one DICOM image.")
        asked.append((sr, lambda result, id: structured_report(result, as_shown(sources, result), language, id)))
    if fhir:
        from echovlm_edge.runtime.clinical.diagnostic_report import diagnostic_report

        asked.append((fhir, lambda result, id: diagnostic_report(result, sources, language, id)))
    return asked
