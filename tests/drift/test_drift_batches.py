"""Which folders are batches."""

import pytest

from hcmi.drift.batches import find_batches
from hcmi.errors import DriftError


def test_unknown_batch_is_named_with_the_known_ones(world):
    for names in (["new"], ["same", "new"]):
        with pytest.raises(DriftError, match=r"a batch called 'new', got brighter, broken, few, same, silent, table\."):
            find_batches(world[0] / "incoming", names)


@pytest.mark.parametrize("name", ["..", ".", "", "same/videos", "../incoming/same"])
def test_a_path_is_no_name_of_a_batch(world, name):
    with pytest.raises(DriftError, match="need a batch called"):
        find_batches(world[0] / "incoming", [name])


def test_named_batches_are_found_once_by_name_and_an_empty_one_is_passed_over(world):
    found = find_batches(world[0] / "incoming", ["same", "empty", "few", "same"])
    assert [folder.name for folder in found] == ["few", "same"]
