"""Which shard a clip belongs in."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hcmi.shards.clip_table import split_by_hash


@given(st.sets(st.integers(0, 2**64 - 1), max_size=60), st.integers(1, 10), st.integers(0, 2**64 - 1))
def test_shards_change_in_one_place_when_a_clip_is_added(numbers, most, extra):
    def groups(values):
        digests = np.array(sorted(values), np.uint64)
        return [frozenset(digests[leaf].tolist()) for leaf in split_by_hash(digests, np.arange(len(digests)), most)]

    before, after = groups(numbers), groups(numbers | {extra})
    assert sorted(value for group in before for value in group) == sorted(numbers)
    assert all(0 < len(group) <= most for group in before)
    changed = [group for group in before if group not in after]
    assert len(changed) <= 1
    assert set().union(*changed) | {extra} == set().union(*(g for g in after if g not in before)) | {extra}
