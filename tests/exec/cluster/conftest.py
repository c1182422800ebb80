"""Two ranks for the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from exec.cluster.controller import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(2) as ready:
        yield ready
