"""Errors become gRPC's status codes by their kind."""

from __future__ import annotations

import pytest

from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.contracts.statuses import CODES, status_of
from echovlm_edge.runtime.imaging.undecodable import Undecodable
from echovlm_edge.runtime.imaging.video import CutShort


@pytest.mark.parametrize(
    "error", [CutShort("image 1", 5, 3), Undecodable("image 1 is damaged.", "image 1", "image/png", "PNG")]
)
def test_an_error_of_a_narrower_kind_has_the_status_of_its_kind(error: UserError) -> None:
    kind = type(error).__mro__[1]
    assert status_of(error).code is CODES[kind]
    assert status_of(error).sentence == str(error)
