"""What objects show of themselves: no secret, and nothing of a patient, since a log or a traceback may print them."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest

from echovlm_edge import runtime

# They describe machines, bundles and measurements.
WITHOUT_PATIENTS = (
    "bundle",
    "doctor",
    "profiling",
    "serving.supervision.memory_fit",
    "serving.supervision.server_memory",
    "backends.bundle_memory",
    "backends.operator_times",
)
# What can hold words, bytes, numbers of tokens, or the numbers made of a picture.
HOLDS = re.compile(r"\b(str|bytes|NDArray|Floats|Logits|Dataset)\b")
TOKENS = re.compile(r"token|token_ids?")
WHO = {"client", "scope"}  # names of the clients file
# Of an evaluation: the names of rows, which sentences say, of groups, metrics and files, and words of a few.
EVALUATED = {"name", "key", "language", "not_sent", "region"}
HARMLESS = {
    "Answer": {"finish"},
    "BadRow": {"name", "reason"},
    "Case": {"language"},
    "Comparison": {"before", "after", "by_group", "notes"},
    "Difference": {"group", "metric"},
    "Evaluation": {"created", "data", "notes", "where"},
    "Figure": {"group", "metric"},
    "Form": {"says"},
    "InProcess": {"where"},
    "Metric": {"key", "family", "title", "note"},
    "ModelFacts": {"model", "bundle_id", "target", "precision"},
    "Remote": {"where"},
    "ScoredRow": {"finish", "pictures", "statistics", *EVALUATED},
    "SkippedRow": {"name", "reason"},
    "HttpOptions": {"listen", "names"},
    "StudyFile": {"name"},  # of a file that the operator chose to show to all clients
    "PageFile": {"path", "media_type", "tag"},
    "CallError": {"request_id", "method", "outcome", "client", "door"},
    "Refusal": {"code"},  # a fixed word
    "Angles": {"cos", "sin"},  # of positions
    "Asker": WHO,
    "Client": {"name", "certificate", "group"},
    "Codestream": {"kind", "colour"},  # each one of a few words, as in the next ones
    "Confinement": {"holds", "lacks"},
    # Of the DICOM node: who sends and gets, SOP classes, and sentences without a patient's data.
    "Arrival": {"ae_title", "sop_class", "kind"},
    "Document": {"kind", "sop_class"},
    "FhirServer": {"name", "kinds", "url"},
    "Folder": {"name", "kinds"},
    "Instance": {"ae_title", "sop_class", "kind", "choice"},
    "InstanceHeader": {"sop_class", "kind"},
    "Owed": {"destination"},
    "OwnIdentity": {"ae_title"},
    "Peer": {"name", "ae_title", "certificate"},
    "Predecessor": {"sop_class"},
    "Question": {"rows"},
    "ReportOptions": {"destinations"},
    "Row": {"name", "matches", *EVALUATED},
    "StorePeer": {"name", "kinds"},
    "PeerAddress": {"title", "host"},
    "StowOptions": {"address"},
    "StowServer": {"name", "kinds", "url"},
    "Summary": {"error"},
    "Taken": {"sop_class"},
    "Words": {"title", "patient", "born", "accession", "study", "findings", "impression", "about", "page"},
    "EngineInfo": {"model", "checkpoint_sha256", "bundle_id", "target", "precision"},
    "Finished": {"model", "bundle_id"},
    "Generation": WHO,
    "Report": {"model", "bundle_id", "request_id"},
    "GenerationRequest": WHO,
    "Frame": {"name"},  # that, and the next, is what error messages say
    "GreyScale": {"function", "notes"},
    "ImageInput": {"name", "media_type"},
    "ImagePath": {"name", "media_type"},
    "Method": {"name"},
    "Palette": {"notes"},
    "Picture": {"notes"},
    "OpenStudy": {"id"},  # which can end the study, for its own client alone
    "PixelFormat": {"photometric"},
    "Prompt": {"image_rows", "positions"},
    "Samples": {"colour", "notes"},
    "Served": {"address"},
    "ServerOptions": {"listen"},
    "Shown": {"notes"},
    "Source": {"notes"},
    "StageName": {"words", "meaning"},  # of a table in the code
    "TensorRTErrors": {"messages"},  # about engines
    "Gpu": {"name", "capability", "driver"},
    "StillFrames": {"_name"},
    "VersionedJson": {"schema", "named", "give", "again", "damaged", "missing"},  # words of the code
    "VideoFrames": {"_name", "_codec"},
    "VideoHeader": {"codec", "notes"},
    "_DecoderRun": {"_placed"},  # regions, which show no contents
    "_Entry": {"client"},
    "_File": {"notes"},
    "_Held": WHO,
    "_Job": {"scope"},
    "_Receiving": WHO,
    "Study": {"ae_title", "completed_by", "reason"},
    "_Study": WHO | {"listed_as"},  # the id of `OpenStudy`
    "_Turn": {"client", "failure"},
    "_Video": {"codec", "name"},
}


def dataclasses_of_the_runtime() -> Iterator[type]:
    prefix = f"{runtime.__name__}."
    for found in pkgutil.walk_packages(runtime.__path__, prefix):
        if found.name.removeprefix(prefix).startswith(WITHOUT_PATIENTS) or found.name.endswith(".__main__"):
            continue
        try:
            module = importlib.import_module(found.name)
        except Exception as missing:  # an extra that is not installed
            print(f"{found.name}: {missing}")
            continue
        for kind in vars(module).values():
            if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.__name__:
                yield kind


@pytest.mark.parametrize("kind", dataclasses_of_the_runtime(), ids=lambda kind: kind.__qualname__)
def test_nothing_secret_is_shown(kind: type) -> None:
    made = object.__new__(kind)
    fields = dataclasses.fields(kind)
    for field in fields:
        object.__setattr__(made, field.name, f"marker of {field.name}.")
    shown = {field.name for field in fields if f"marker of {field.name}." in repr(made)}
    suspicious = {field.name for field in fields if HOLDS.search(str(field.type)) or TOKENS.fullmatch(field.name)}
    assert not (shown & suspicious) - HARMLESS.get(kind.__name__, set())
