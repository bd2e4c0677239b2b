"""Every test of a behaviour runs on every backend and driver."""

from __future__ import annotations

import pytest
from io_engines import WAYS, Engines

from millrace import IoSettings


@pytest.fixture(params=WAYS)
def engines(request: pytest.FixtureRequest) -> Engines:
    """Every backend with every driver."""
    return Engines(WAYS[request.param])


@pytest.fixture
def any_engine() -> Engines:
    """The default, for what does not depend on backend and driver."""
    return Engines(IoSettings())
