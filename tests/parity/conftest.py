"""Bundles of tiny jobs, recorded once for all tests: a graph compile costs seconds."""

import pytest

from tests.parity.jobs import Recordings


@pytest.fixture(scope="session")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Recordings:
    return Recordings(tmp_path_factory.mktemp("recordings"))
