from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.raylets import Raylets, two_raylets


@pytest.fixture(scope="session")
def raylets() -> Iterator[Raylets]:
    with two_raylets() as cluster:
        yield cluster
