"""The stage on small shards and an untrained model: what it writes, and what must not change it."""

import io
import json
import tarfile
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure
from model_world import make_shards, save_small_clip
from PIL import Image
from search_world import searchable_model

from hcmi.config import load_params
from hcmi.errors import ConfigError, DataError
from hcmi.evaluate import evaluate, report_text, stage
from hcmi.evaluate.metrics import RECALL_AT
from hcmi.evaluate.plots import _in_order, draw_worst_queries
from hcmi.evaluate.split_metrics import SplitMetrics
from hcmi.evaluate.stage import split_sha256
from hcmi.model import encode_texts, encode_videos, load_retriever, score
from hcmi.shards import ShardReader, clip_batches
from hcmi.types import VideoTokens

FIGURES = {*(f"R@{k}" for k in RECALL_AT), "MdR", "MnR", "n", "R@1_ci95", "R@1_tie_range"}
COLOURS = ("red", "green", "blue", "a ring", "a square")


def clip_record(split: str, number: int, captions: int) -> dict:
    text = f"{COLOURS[number % 5]} slides then {COLOURS[number // 5 % 5]} grows"
    return {"video_id": f"{split}{number:03d}", "captions": [text + " left" * i for i in range(captions)],
            "path": f"videos/{split}{number}.mp4", "split": split, "start_s": 0.0, "end_s": 1.5 + number % 4,
            "duration_s": 1.5 + number % 4, "sha256": f"{split}{number}", "times_s": [0.1 * f for f in range(6)],
            "decoder": "decord", "num_decodable": 6, "width": 64, "height": 48,
            "tags": {"num_events": str(1 + number % 3), "meaning": str(number)}}


def write_shards(folder, sizes=(("train", 12), ("test", 20)), captions=(2,), order=None):
    """Tars and an index as the `shards` stage has them; the frames of clip i are noise around a grey level."""
    folder.mkdir()
    schema = pa.schema([("split", pa.string()), ("shard", pa.string()), ("video_id", pa.string()),
                        ("json_offset", pa.int64()), ("json_size", pa.int64()),
                        ("frame_offsets", pa.list_(pa.int64())), ("frame_sizes", pa.list_(pa.int32()))])
    rows = []
    for split, size in sizes:
        name = f"{split}-000000.tar"
        with tarfile.open(folder / name, "w") as tar:
            for number in (order or range(size)) if split == "test" else range(size):
                record = clip_record(split, number, captions[number % len(captions)])
                members = {"json": json.dumps(record).encode()}
                pixels = np.random.default_rng(number).integers(0, min(40 + 10 * number, 255), (6, 16, 16, 3), np.uint8)
                for frame in range(6):
                    buffer = io.BytesIO()
                    Image.fromarray(pixels[frame]).save(buffer, "JPEG", quality=95)
                    members[f"{frame:02d}.jpg"] = buffer.getvalue()
                for kind, data in members.items():
                    info = tarfile.TarInfo(f"{record['video_id']}.{kind}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        found: dict[str, dict] = {}
        with tarfile.open(folder / name) as tar:
            for member in tar:
                key, _, kind = member.name.partition(".")
                found.setdefault(key, {})[kind] = (member.offset_data, member.size)
        for key, places in found.items():
            frames = [places[kind] for kind in sorted(places) if kind != "json"]
            rows.append({"split": split, "shard": name, "video_id": key, "json_offset": places["json"][0],
                         "json_size": places["json"][1], "frame_offsets": [f[0] for f in frames],
                         "frame_sizes": [f[1] for f in frames]})
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "index.parquet")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory, repo_root):
    """A model folder, shards, and the parameters."""
    folder = tmp_path_factory.mktemp("evaluate")
    searchable_model().save_pretrained(folder / "model")
    write_shards(folder / "shards")
    params = load_params(repo_root / "params.yaml")
    return folder, params.model_copy(update={"evaluate": params.evaluate.model_copy(
        update={"bank_size": 9, "bootstrap_samples": 50})})


def with_evaluate(params, **changes):
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update=changes)})


def run(world, name: str, shards=None, **changes):
    folder, params = world
    out = folder / name
    report = evaluate(model_dir=folder / "model", shards_dir=shards or folder / "shards",
                      out_json=out / "metrics" / "evaluate.json", plots_dir=out / "plots",
                      params=with_evaluate(params, **changes))
    return out, report


@pytest.fixture(scope="module")
def done(world):
    return run(world, "first")


def test_evaluate_writes_the_contracts_keys_in_order(done):
    out, report = done
    written = json.loads((out / "metrics" / "evaluate.json").read_text())
    assert written == json.loads(json.dumps(report))
    assert list(written) == ["protocol", "raw", "chance", "levels", "post", "v2t_by_clip"]
    assert list(written["protocol"]) == ["dataset", "split", "num_videos", "num_texts", "captions_per_video",
                                         "split_sha256", "videos_sha256", "selection_split", "decoder", "precision",
                                         "seed", "head", "backbone", "model", "trained"]
    assert list(written["levels"]) == ["frame_word", "clip_phrase", "video_sentence"]
    assert {name: entry["deployable"] for name, entry in written["post"].items()} == {
        "qb_norm": True, "sinkhorn_single": True, "dsl": False, "sinkhorn": False}
    assert {name: (entry["scale"], entry["scale_from"]) for name, entry in written["post"].items()} == {
        "qb_norm": ({"t2v": 20}, "default"), "sinkhorn_single": ({"t2v": 50}, "default"),
        "dsl": ({"t2v": 100, "v2t": 100}, "default"), "sinkhorn": ({"t2v": 100, "v2t": 100}, "default")}
    for entry in (written["raw"], *written["levels"].values(), written["post"]["dsl"]):
        assert set(entry["t2v"]) == set(entry["v2t"]) == FIGURES
        assert (entry["t2v"]["n"], entry["v2t"]["n"]) == (40, 20)
    assert written["protocol"]["decoder"] == "decord"
    assert (written["protocol"]["num_texts"], written["protocol"]["captions_per_video"]) == (40, 2)


def test_evaluate_shows_chance_beside_the_figures_and_what_to_do_next(done):
    """40 captions of 20 clips, two each."""
    _, report = done
    assert report["chance"]["t2v"]["R@10"] == 50
    assert report["chance"]["v2t"]["R@1"] == 5
    lines = report_text(report).splitlines()
    raw = next(number for number, line in enumerate(lines) if line.startswith("v2t  raw"))
    assert lines[raw + 1].split() == ["t2v", "by", "chance", "5.0", "25.0", "50.0"]
    assert lines[raw + 2].split()[:4] == ["v2t", "by", "chance", "5.0"]
    assert lines[-1].startswith("next: ")


@pytest.mark.parametrize(("low", "trained", "line"), [
    (5.0, True, "next: these clips do not tell the model from chance."), (5.1, True, "next: `hcmi export`, then"),
    (5.1, False, "next: this is what training has to beat.")])
def test_next_step_depends_on_chance_and_on_training(low, trained, line):
    report = {"raw": {"t2v": {"R@1_ci95": [low, 50.0]}}, "chance": {"t2v": {"R@1": 5.0}},
              "protocol": {"trained": trained, "backbone": "scratch"}}
    assert stage.next_step(report).startswith(line)


def test_evaluate_writes_the_headline_beside_its_figures(done):
    out, report = done
    raw = report["raw"]
    assert json.loads((out / "metrics" / "headline.json").read_text()) == {
        "t2v": {"R@1": raw["t2v"]["R@1"], "R@5": raw["t2v"]["R@5"], "R@10": raw["t2v"]["R@10"]},
        "v2t": {"R@1": raw["v2t"]["R@1"]}}


def test_evaluate_writes_tables_and_pictures_that_open(done):
    plots = done[0] / "plots"
    assert {path.name for path in plots.iterdir()} == {
        "ranks.parquet", "run.json", "recall_curve.csv", "rank_histogram.csv", "slices.csv", "worst_queries.csv",
        "recall_curve.png", "rank_histogram.png", "slices.png", "worst_queries.png"}
    for path in plots.glob("*.png"):
        assert min(Image.open(path).size) > 100, path
    histogram = pd.read_csv(plots / "rank_histogram.csv")
    assert histogram[["t2v", "v2t"]].sum().tolist() == pytest.approx([100, 100], abs=1e-2)


def test_evaluate_keeps_one_rank_per_query_that_gives_the_same_recall(done):
    out, report = done
    ranks = pd.read_parquet(out / "plots" / "ranks.parquet")
    for direction in ("t2v", "v2t"):
        rows = ranks[ranks["direction"] == direction]
        assert len(rows) == report["raw"][direction]["n"] == rows["query"].nunique()
        assert rows["rank"].mean() == pytest.approx(report["raw"][direction]["MnR"], abs=1e-3)


def test_evaluate_slices_sum_to_the_whole(done):
    out, report = done
    slices = pd.read_csv(out / "plots" / "slices.csv")
    assert set(slices["slice"]) == {"caption_words", "clip_seconds", "num_events"}      # `meaning` has too many values
    for name in ("num_events", "clip_seconds"):
        rows = slices[(slices["slice"] == name) & (slices["direction"] == "t2v")]
        assert rows["n"].sum() == 40
        assert (rows["R@1"] * rows["n"]).sum() / 40 == pytest.approx(report["raw"]["t2v"]["R@1"], abs=1e-3)


def test_evaluate_gives_the_same_bytes_when_run_again(world, done):
    out, _ = run(world, "again")
    for path in sorted((done[0] / "plots").iterdir()):
        assert path.read_bytes() == (out / "plots" / path.name).read_bytes(), path.name
    assert (done[0] / "metrics/evaluate.json").read_bytes() == (out / "metrics/evaluate.json").read_bytes()


def test_evaluate_gives_the_same_figures_when_the_batch_size_changes(world, done):
    assert run(world, "batches_of_3", batch_size=3)[1]["raw"] == done[1]["raw"]


def test_evaluate_gives_the_same_figures_when_three_processes_encode(world, done):
    """Each process encodes its part of the split (here one after the other); the parts in order are the split."""
    model, reader = load_retriever(world[0] / "model"), ShardReader(world[0] / "shards", "test")
    frames = model.config.num_frames
    parts = [encode_videos(model, (batch.picked for batch in clip_batches(reader.index, 4, frames, rank, 3)))
             for rank in range(3)]
    videos = VideoTokens(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(parts[0])))
    texts = encode_texts(model, [caption for clip in reader.clips for caption in clip.captions], batch_size=3)
    sims_QV = model.combine(score(model, texts, videos)).numpy()
    assert SplitMetrics(np.repeat(np.arange(20), 2), 20, 50).both(sims_QV) == done[1]["raw"]


def test_evaluate_gives_the_same_figures_when_clips_come_in_another_order(world, done, tmp_path):
    shards = write_shards(tmp_path / "shards", order=[*range(19, 9, -1), *range(10)])
    report = run(world, "order", shards)[1]
    assert report["protocol"] == done[1]["protocol"]
    for direction in ("t2v", "v2t"):
        for key in FIGURES - {"R@1_ci95"}:
            assert report["raw"][direction][key] == pytest.approx(done[1]["raw"][direction][key]), key


def test_evaluate_counts_every_caption_when_clips_have_unequal_numbers(world, tmp_path):
    shards = write_shards(tmp_path / "shards", (("test", 10),), captions=(3, 1, 0))
    out, report = run(world, "uneven", shards)
    assert (report["raw"]["t2v"]["n"], report["raw"]["v2t"]["n"]) == (15, 7)
    assert (report["protocol"]["num_videos"], report["protocol"]["captions_per_video"]) == (10, 1.5)
    assert list(report["post"]) == ["dsl", "sinkhorn"]      # no training captions, no bank
    assert (out / "plots" / "worst_queries.png").exists()


def test_evaluate_chooses_scales_on_the_validation_clips_when_they_are_enough(world, tmp_path, monkeypatch):
    """It never chooses on the split that it measures."""
    shards = write_shards(tmp_path / "shards", (("train", 12), ("val", 7), ("test", 20)))
    seen = []

    def choose(caption_video, sims_QV, bank_NV):
        seen.append((len(np.unique(caption_video)), sims_QV.shape, bank_NV.shape))
        return {"qb_norm": {"t2v": 5.0}, "sinkhorn_single": {"t2v": 10.0}, "dsl": {"t2v": 20.0, "v2t": 50.0},
                "sinkhorn": {"t2v": 200.0, "v2t": 500.0}}

    monkeypatch.setattr(stage, "choose_scales", choose)
    for name, fewest, split in (("few", 8, "test"), ("same", 7, "val")):
        monkeypatch.setattr(stage, "FEWEST_CLIPS", fewest)
        report = run(world, name, shards, split=split)[1]
        assert {entry["scale_from"] for entry in report["post"].values()} == {"default"}
    assert not seen
    report = run(world, "enough", shards)[1]
    assert seen == [(7, (14, 7), (9, 7))]
    assert report["post"]["sinkhorn"]["scale"] == {"t2v": 200, "v2t": 500}
    assert {entry["scale_from"] for entry in report["post"].values()} == {"validation"}


def test_evaluate_says_what_shared_captions_change_when_there_are_some(world, tmp_path):
    shards = write_shards(tmp_path / "shards", (("test", 30),))     # 25 different texts
    report = run(world, "shared", shards)[1]
    assert list(report) == ["protocol", "raw", "chance", "levels", "post", "shared_captions", "v2t_by_clip"]
    assert report["shared_captions"]["captions"] == 20      # two of each of clips 0 to 4 and 25 to 29
    for direction in ("t2v", "v2t"):
        assert set(report["shared_captions"][direction]) == FIGURES
        assert report["shared_captions"][direction]["MnR"] < report["raw"][direction]["MnR"]
    assert "any clip with the same caption" in report_text(report)


def test_evaluate_has_the_figures_of_published_code_beside_its_own_when_a_clip_has_several_captions(world):
    """CLIP4Clip ranks a clip's best caption among the best captions of the other clips, and not among all captions."""
    report = run(world, "several", world[0] / "shards")[1]
    ours, published = report["raw"]["v2t"], report["v2t_by_clip"]
    assert (published["R@1"], published["n"]) == (ours["R@1"], ours["n"])
    assert published["MnR"] < ours["MnR"]
    assert "v2t  each clip by its best caption" in report_text(report)


def test_evaluate_refuses_to_lose_its_report_in_the_headline(world, tmp_path):
    with pytest.raises(ConfigError, match=r"headline.json: need another name, because headline.json is written beside"):
        evaluate(model_dir=world[0] / "model", shards_dir=world[0] / "shards", out_json=tmp_path / "headline.json",
                 plots_dir=tmp_path / "plots", params=world[1])


def test_evaluate_refuses_a_split_when_no_clip_has_a_caption(world, tmp_path):
    shards = write_shards(tmp_path / "shards", (("test", 3),), captions=(0,))
    with pytest.raises(DataError, match="split test: need captions to measure the model with, got 3 clips without any"):
        run(world, "uncaptioned", shards)
    assert not (world[0] / "uncaptioned").exists()


def test_evaluate_measures_without_a_bank_when_no_training_clip_has_a_caption(tmp_path, world):
    shards = make_shards(tmp_path, num_train=6, uncaptioned=["train"])
    checkpoint = save_small_clip(tmp_path / "clip", image_size=16)
    report = evaluate(model_dir=checkpoint, shards_dir=shards, out_json=tmp_path / "evaluate.json",
                      plots_dir=tmp_path / "plots", params=world[1])
    assert report["post"].keys() == {"dsl", "sinkhorn"}     # those that need no other captions


def test_evaluate_measures_a_checkpoint_and_names_it(world, tmp_path):
    folder, params = world
    checkpoint = save_small_clip(tmp_path / "clip", image_size=16)
    report = evaluate(model_dir=checkpoint, shards_dir=folder / "shards", out_json=tmp_path / "evaluate.json",
                      plots_dir=tmp_path / "plots", params=params)
    assert (report["protocol"]["model"], report["protocol"]["trained"]) == (str(checkpoint), False)
    assert report["raw"] == report["levels"]["video_sentence"]
    assert f"model {checkpoint}, zero-shot of {checkpoint}" in report_text(report)


@pytest.mark.parametrize(("out", "encoded"), [("all/evaluate.json", None), ("e.json", "all/deep/encoded.safetensors")])
def test_no_output_is_written_into_the_folder_that_is_replaced(world, tmp_path, out, encoded):
    folder, params = world
    (tmp_path / "all").mkdir()
    (tmp_path / "all/notes.txt").write_text("keep")
    with pytest.raises(ConfigError, match=r"need a place outside .*all, which is replaced, got one inside"):
        evaluate(model_dir=folder / "model", shards_dir=folder / "shards", out_json=tmp_path / out,
                 plots_dir=tmp_path / "all", params=params, encoded_file=encoded and tmp_path / encoded)
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["notes.txt"]


def test_dollars_in_captions_are_drawn_as_they_are(world, tmp_path):
    reader = ShardReader(world[0] / "shards", "test")
    first, second = (clip.video_id for clip in reader.clips[:2])
    worst = pd.DataFrame([{"text": "he bids $5 # then _ and $10", "video_id": first, "first": second, "rank": 2}])
    encoded = SimpleNamespace(video_ids=[clip.video_id for clip in reader.clips])
    draw_worst_queries(worst, reader, encoded, tmp_path / "worst.png")
    assert (tmp_path / "worst.png").stat().st_size > 1000


def test_pictures_show_the_start_of_a_caption_without_spaces(world, tmp_path, monkeypatch):
    """A long caption in Chinese was drawn as [...]."""
    reader = ShardReader(world[0] / "shards", "test")
    name = reader.clips[0].video_id
    drawn = []
    monkeypatch.setattr(Figure, "text", lambda self, x, y, text, **_: drawn.append(text))
    worst = pd.DataFrame([{"text": "狗跳进水里" * 60, "video_id": name, "first": name, "rank": 2}])
    draw_worst_queries(worst, reader, SimpleNamespace(video_ids=[name]), tmp_path / "worst.png")
    assert drawn[0].replace("\n", "").startswith("“" + "狗跳进水里" * 39)


def test_values_of_a_tag_are_in_the_order_of_their_numbers():
    assert sorted(["①", "over 10", "²", "5-10", "9", "0-5"], key=_in_order) == ["0-5", "5-10", "9", "over 10", "²", "①"]


def test_split_sha256_changes_when_a_caption_does(world, tmp_path):
    folder, _ = world
    before = split_sha256(ShardReader(folder / "shards", "test"))
    assert before != split_sha256(ShardReader(write_shards(tmp_path / "s", captions=(3,)), "test"))
