"""A server of the small bundle and a PACS, for the tests of the DICOM node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.carts import Pacs, running_pacs
from tests.support.running_server import running


@pytest.fixture(scope="session")
def server(golden_bundle: Path) -> Iterator[str]:
    """The address of a server."""
    with running(golden_bundle) as served:
        yield served.server.address


@pytest.fixture
def pacs() -> Iterator[Pacs]:
    """A PACS of its own."""
    with running_pacs() as running_one:
        yield running_one
