"""How a run's figures and vectors are collected, step by step."""

import pytest
import torch

from hcmi.train.state import Progress, StepResult


def test_progress_collects_steps_and_closes_an_epoch_when_worked_by_hand():
    figures = {"denoise_fired": 2 / 4, "denoise_right": 1 / 4, "denoise_true": 6 / 4}
    progress = Progress.start(4, 2)
    progress.add(StepResult([0, 1], figures, torch.ones(2, 2), torch.stack([torch.full((2, 2), 2.0),
                                                                            torch.full((2, 2), 3.0)])))
    progress.add(StepResult([2, 3], figures, torch.full((2, 2), 4.0), None))
    assert progress.video_ND[:, 0].tolist() == [1, 1, 4, 4]
    assert progress.views_2ND[..., 0].tolist() == [[2, 2, 0, 0], [3, 3, 0, 0]]
    row = progress.end_epoch(5, 2, {"R@1": 50.0}, {"train/seconds": 1.5})
    assert row == {"epoch": 5, "train/seconds": 1.5, "train/denoise_fired": 0.5, "train/denoise_precision": 0.5,
                   "train/denoise_recall": pytest.approx(1 / 6), "val/R@1": 50.0}
    assert (progress.step, progress.sums, progress.history) == (2, {}, [row])
