"""The world that the tests of the stage and of its page share."""

import pytest
from drift_world import World, make_world, run


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    return make_world(tmp_path_factory.mktemp("drift"))


@pytest.fixture(scope="session")
def result(world) -> dict:
    """The report on all batches, in reports/drift."""
    return run(world, "reports/drift")
