"""The figures of a run's speed: worked by hand, and kept out of what DVC compares."""

import math

import pytest
import torch
from model_world import train_config
from train_world import curves

from hcmi.train import speed
from hcmi.train.speed import FIGURES, Speed, epoch_line, write_speed


def test_speed_counts_clips_and_waiting_when_worked_by_hand(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(speed.time, "monotonic", lambda: now[0])

    def batches():
        for _ in range(3):
            now[0] += 1.0       # until a batch is there
            yield 8

    clock = Speed(torch.device("cpu"), 8.0)
    for clips in clock.waiting_for(batches()):
        now[0] += 3.0           # a step
        clock.count(clips)
    found = clock.figures()
    assert (found["train/seconds"], found["train/clips_per_second"], found["train/waiting"]) == (12.0, 2.0, 0.25)
    assert found["train/memory_mb"] > 10
    assert found["train/share_of_peak"] == 0.25


def test_write_speed_has_a_row_for_each_epoch_and_gaps_for_older_versions(tmp_path):
    whole = dict(zip(FIGURES, (12.0, 2.0, 0.25, 100.0, 0.125), strict=True))
    write_speed(tmp_path, [{"epoch": 0, "train/seconds": 7.0}, {"epoch": 1, **whole}])
    assert (tmp_path / "speed.tsv").read_text() == (
        "epoch\tseconds\tclips_per_second\twaiting\tmemory_mb\tshare_of_peak\n1\t7\t\t\t\t\n2\t12\t2\t0.25\t100\t0.125\n")


@pytest.mark.parametrize(("waiting", "said"), [(0.01, ""), (0.4, ", 40% of the time waiting for data")])
def test_epoch_line_says_when_training_waits_for_data(waiting, said):
    row = {"epoch": 1, "train/loss": 2.5, "val/R@1": 50.0, "val/v2t_R@1": 40.0, "train/clips_per_second": 300.4,
           "train/waiting": waiting}
    assert epoch_line(row, 8) == ("epoch 2 of 8: loss 2.500, validation R@1 50.0 % text to video, 40.0 % video to "
                                  f"text; 300 clips/s{said}")


def test_train_writes_tables_of_what_it_did_and_of_its_speed_beside_them(undisturbed):
    tables = curves(undisturbed)
    expected = {f"train/{name}.tsv" for name in ("loss", "loss_frame_word", "loss_sum", "logit_scale_frame_word",
                                                 "gradient_norm", "lr", "backbone_lr")}
    assert expected <= tables.keys()
    assert {f"val/{way}R@{k}.tsv" for way in ("", "v2t_") for k in (1, 5, 10)} <= tables.keys()
    assert not [name for name in tables if any(f"{figure}.tsv" in name for figure in FIGURES)]
    assert len((undisturbed / "metrics" / "speed.tsv").read_text().splitlines()) == 4
    rates = [float(line.split("\t")[1]) for line in tables["train/lr.tsv"].splitlines()[1:]]
    config = train_config()
    done = [max((step / 9 - config.warmup_fraction) / (1 - config.warmup_fraction), 0) for step in range(9)]
    shares = [1e-3, *((1 + math.cos(math.pi * share)) / 2 for share in done[1:])]
    assert rates == pytest.approx([config.lr * sum(shares[start:start + 3]) / 3 for start in (0, 3, 6)])
