"""The last errors: as many as there is room for, the newest first, and none that is no error."""

from __future__ import annotations

from itertools import count

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.observability.last_errors import LastErrors
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.call_record import CallRecord


def test_it_remembers_the_newest() -> None:
    moments = count(100.0)
    errors = LastErrors(2, lambda: next(moments))
    for number in range(3):
        call = CallRecord(f"Method{number}", Client("cart"), [errors.observe])
        call.fail(InvalidInput("The patient Jane Doe."))
        call.end()
    for outcome in ("ok", "cancelled"):
        call = CallRecord("Diagnose", Client("cart"), [errors.observe])
        call.outcome = outcome
        call.end()
    assert [(one.time, one.method, one.outcome) for one in errors.listed()] == [
        (102.0, "Method2", "invalid_argument"),
        (101.0, "Method1", "invalid_argument"),
    ]
    assert "Jane" not in repr(errors.listed())
