"""Splits that are expected from names, against those that the stage gives to files of different bytes."""

import pytest
from dataset_world import CONFIG, rows_for

from hcmi.dataset.build_clips import build_clips
from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.expected_splits import expected_splits

FEW = {"seed": 0, "val_fraction": 0.1, "test_fraction": 0.2}


@pytest.fixture
def film_of(tmp_path, film):
    """Gives each row a file of its own bytes."""
    def locate(row):
        path = tmp_path / row.video
        if not path.exists():
            path.write_bytes(film.read_bytes() + row.video.encode())
        return str(path)
    return locate


@pytest.mark.parametrize("changes", [{}, {"seed": 3}, {"val_fraction": 0.0}, {"val_fraction": 0.0,
                                                                              "test_fraction": 0.0}])
@pytest.mark.parametrize("rows", [rows_for(40), rows_for(1), rows_for(2), rows_for(3), rows_for(4, split="train"),
                                  [*rows_for(4, split="test"), CaptionRow("free.mp4", "x")]])
def test_expected_splits_are_those_of_the_stage(film_of, rows, changes):
    config = CONFIG.model_copy(update={**FEW, **changes})
    made = {clip.path.rpartition("/")[2]: clip.split for clip in build_clips(rows, film_of, config)}
    assert expected_splits({row.video: row.split for row in rows}, config) == made
