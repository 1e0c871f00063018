"""What every test of the build shares."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def builds_share_traces(shared_traces: None) -> None:
    """A build that a test starts in this process traces no shape of model that another has traced."""
