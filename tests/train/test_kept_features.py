"""Training on kept features: the same loss as frozen towers on pixels, each file whole, no work done twice."""

import multiprocessing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_world import save_siglip_2
from model_world import SIZE, save_small_clip, save_small_siglip, section, train_config
from safetensors.torch import load_file
from train_world import StopError, assert_same_run, run, save_after_every_step, stop_at

from hcmi.encode import encode_split
from hcmi.errors import MachineError, ModelError
from hcmi.model import load_retriever, new_retriever, score
from hcmi.shards import ShardReader, TrainLoader
from hcmi.train import feature_files, kept_features
from hcmi.train.feature_files import make_array, open_array
from hcmi.train.kept_features import encode_clips, keep_features
from hcmi.train.step import batch_loss

MANY = {"num_workers": 0, "num_captions": 2}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HCMI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def untrained(backbone: Path, reader: ShardReader):
    torch.manual_seed(0)
    return new_retriever(section(backbone=str(backbone), num_words=32), reader.frame_shape[0], [])


# the same as towers on pixels

@pytest.mark.parametrize("save", [save_small_clip, save_small_siglip, partial(save_small_siglip, pad_id=0),
                                  save_siglip_2], ids=["clip", "siglip", "siglip, other padding", "siglip_2"])
def test_loss_and_gradients_are_those_of_frozen_towers_on_pixels(few, tmp_path, save):
    readers = [ShardReader(few, split) for split in ("train", "val")]
    model = untrained(save(tmp_path / "towers"), readers[0])
    head, (kept, _) = keep_features(model, readers, "float32")
    config = train_config(towers="frozen", denoise="off")
    losses, gradients = [], []
    for each, reader, rounded in ((model, readers[0], False), (model, readers[0], True), (head, kept, False)):
        if rounded:         # films have frames that are alike, and rounding decides which of them is nearest to a word
            model._for_head = lambda features: features.half().float()
        batch = next(iter(TrainLoader(reader, 6, 4, seed=3, **MANY)))
        model.zero_grad()
        total, _ = batch_loss(each.eval(), batch, config, "off", "float32")
        total.backward()
        losses.append(float(total.detach()))
        gradients.append(torch.cat([weight.grad.flatten() for weight in model.head.parameters()
                                    if weight.grad is not None]))
    assert losses[2] == pytest.approx(losses[0], rel=2e-3)
    assert losses[2] == pytest.approx(losses[1], rel=1e-6)
    assert float((gradients[2] - gradients[1]).norm() / gradients[1].norm()) < 1e-5


def test_every_stored_frame_has_the_feature_that_the_towers_give_it(few, clip):
    reader = ShardReader(few, "train")
    model = untrained(clip, reader).eval()
    _, (kept,) = keep_features(model, [reader], "float32")
    for row in range(len(reader)):
        which = [-1, *range(int(reader.num_stored[row]))[::-1]]
        slots = np.ones((len(which), *kept.frame_shape), np.uint8)
        kept.read_into(row, which, slots)
        with torch.inference_mode():
            pixels = model.processor.frames(reader.frames(row, which[1:]))[None]
            expected = model.frame_features(pixels)[0].half().numpy()
        assert not slots[0].any()
        assert np.allclose(slots[1:].view(np.float16), expected, atol=1e-3)


def test_validation_scores_are_those_of_the_whole_model(few, clip):
    readers = [ShardReader(few, split) for split in ("train", "val")]
    model = untrained(clip, readers[0]).eval()
    head, kept = keep_features(model, readers, "float32")
    for reader, of_features in zip(readers, kept, strict=True):
        whole, found = encode_split(model, reader, 4), encode_clips(head.eval(), of_features)
        assert (found.video_ids, found.captions) == (whole.video_ids, whole.captions)
        assert np.array_equal(found.caption_video, whole.caption_video)
        for level, sims_QV in score(model, whole.texts, whole.videos).items():
            assert torch.allclose(score(head, found.texts, found.videos)[level], sims_QV, atol=5e-3), level


# a run

def frozen(films, folder, clip, **changes):
    return run(films, folder, section(backbone=str(clip), num_words=32), **{"towers": "frozen", "batch_size": 3,
                                                                            "epochs": 3, **changes})


def test_run_trains_the_head_alone_and_saves_an_ordinary_model(few, clip, tmp_path):
    frozen(few, tmp_path, clip)
    before, after = load_file(clip / "model.safetensors"), load_file(tmp_path / "model" / "model.safetensors")
    towers = {name: weight for name, weight in after.items() if name.startswith("towers.")}
    assert towers.keys() == {f"towers.{name}" for name in before}
    assert all(torch.equal(weight, before[name.removeprefix("towers.")]) for name, weight in towers.items())
    torch.manual_seed(0)
    start = new_retriever(section(backbone=str(clip), num_words=32), SIZE, []).head.state_dict()
    assert any(not torch.equal(after[f"head.{name}"], weight) for name, weight in start.items())
    load_retriever(tmp_path / "model")


def test_second_run_computes_no_feature_again(few, clip, monkeypatch):
    reader = ShardReader(few, "val")
    _, (first,) = keep_features(untrained(clip, reader), [reader], "float32")
    monkeypatch.setattr(kept_features, "_encoded", lambda *_: pytest.fail("computed again"))
    _, (second,) = keep_features(untrained(clip, reader), [reader], "float32")
    for one, other in zip(first.batches(2, 4), second.batches(2, 4), strict=True):
        assert torch.equal(one.frames_BTHXC, other.frames_BTHXC)


@pytest.mark.parametrize(("where", "time_called"), [("step", 3), pytest.param("validate", 2, marks=pytest.mark.slow),
                                                    pytest.param("model", 1, marks=pytest.mark.slow)])
def test_stopped_run_ends_as_an_undisturbed_one(few, clip, tmp_path, monkeypatch, where, time_called):
    frozen(few, tmp_path / "undisturbed", clip)
    with monkeypatch.context() as patched:
        save_after_every_step(patched)
        stop_at(patched, where, time_called)
        with pytest.raises(StopError):
            frozen(few, tmp_path / "stopped", clip)
    frozen(few, tmp_path / "stopped", clip)
    assert_same_run(tmp_path / "undisturbed", tmp_path / "stopped")


def test_checkpoint_holds_no_tower(few, clip, tmp_path, monkeypatch):
    save_after_every_step(monkeypatch)
    stop_at(monkeypatch, "step", 3)
    with pytest.raises(StopError):
        frozen(few, tmp_path, clip)
    path = max((tmp_path / "checkpoints").glob("*/step_*"))
    assert not [name for name in load_file(path) if "towers" in name]


# what a file depends on

def test_other_weights_precision_or_captions_have_other_files(few, clip, cache, tmp_path):
    reader = ShardReader(few, "val")
    model = untrained(clip, reader)

    def names(precision: str = "float32") -> set[str]:
        before = set(cache.glob("*.npy"))
        keep_features(model, [reader], precision)
        return {path.name for path in set(cache.glob("*.npy")) - before}

    assert len(names()) == 2
    assert names() == set()
    assert len(names("bfloat16")) == 2
    reader.clips[0] = type(reader.clips[0])(**{**vars(reader.clips[0]), "captions": ("another caption",)})
    assert len(names()) == 1        # the frames are the same
    with torch.no_grad():
        model.towers.visual_projection.weight[0, 0] += 1
    assert len(names()) == 2


def test_features_that_are_not_finite_are_refused(few, clip, cache):
    reader = ShardReader(few, "val")
    model = untrained(clip, reader)
    with torch.no_grad():
        model.towers.visual_projection.weight.mul_(1e6)
    with pytest.raises(ModelError, match="need features that float16 holds, got larger ones or NaN"):
        keep_features(model, [reader], "float32")
    assert not list(cache.glob("[!.]*"))


# files

ROWS = np.arange(12, dtype=np.float16).reshape(4, 3)


def test_array_is_made_once_and_again_when_it_was_cut_short(tmp_path):
    calls = []

    def parts():
        calls.append(1)
        return iter([ROWS[:1], ROWS[1:]])

    path = tmp_path / "a" / "x.npy"
    for _ in range(2):
        assert np.array_equal(make_array(path, (4, 3), parts), ROWS)
    assert len(calls) == 1
    path.write_bytes(path.read_bytes()[:-2])
    assert open_array(path, (4, 3)) is None
    assert np.array_equal(make_array(path, (4, 3), parts), ROWS)
    assert open_array(path, (3, 4)) is None
    path.write_bytes(b"\x93NUMPY\x01\x00something else")
    assert open_array(path, (4, 3)) is None


def test_nothing_is_left_when_the_work_fails(tmp_path):
    def parts():
        yield ROWS[:1]
        raise StopError

    with pytest.raises(StopError):
        make_array(tmp_path / "x.npy", (4, 3), parts)
    assert [path.name for path in tmp_path.iterdir()] == [".x.npy.lock"]
    (tmp_path / ".x.npy.abcdefgh.tmp").write_bytes(b"of a writer that was killed")
    make_array(tmp_path / "x.npy", (4, 3), lambda: [ROWS])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.npy.lock", "x.npy"]


def _make_slowly(path: Path, started, go_on, made) -> None:
    def parts():
        made.put("parts")
        started.set()
        go_on.wait(60)
        yield ROWS

    make_array(path, (4, 3), parts)


def test_two_at_once_compute_it_once(tmp_path):
    context = multiprocessing.get_context("fork")
    started, go_on, made = context.Event(), context.Event(), context.Queue()
    path = tmp_path / "x.npy"
    first = context.Process(target=_make_slowly, args=(path, started, go_on, made))
    first.start()
    assert started.wait(60)
    with pytest.warns(UserWarning, match=r"another run computes the same features. This one waits for them."):
        other = _waiting(path, go_on)
    first.join(60)
    assert np.array_equal(other, ROWS)
    assert made.get(timeout=60) == "parts"
    assert made.empty()


def _waiting(path: Path, go_on):
    """Ask for the array while another process makes it, which goes on when the note of that appears."""
    original = feature_files.warnings.warn

    def note(*args, **options):
        go_on.set()
        original(*args, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(feature_files.warnings, "warn", note)
        return make_array(path, (4, 3), lambda: pytest.fail("computed twice"))


def test_full_disk_gives_one_line_and_leaves_nothing(small_disk):
    disk = small_disk(200_000)
    with pytest.raises(MachineError, match=r"x\.npy: need to write it, got: No space left on device\. Free space"):
        make_array(disk / "x.npy", (1000, 512), lambda: [np.zeros((1000, 512), np.float16)])
    assert not list(disk.glob("*x.npy*.tmp"))
    assert not (disk / "x.npy").exists()


def test_disk_without_room_is_refused_before_the_work(few, clip, small_disk, monkeypatch):
    monkeypatch.setenv("HCMI_CACHE", str(small_disk(2_000_000)))
    monkeypatch.setattr(feature_files.shutil, "disk_usage", lambda _: type("", (), {"free": 100}))
    monkeypatch.setattr(kept_features, "_encoded", lambda *_: pytest.fail("work was begun"))
    reader = ShardReader(few, "val")
    with pytest.raises(MachineError, match=r"need 0\.00 GB for the features of the towers, got 0\.00 GB\. Free space, "
                                           r"or lower shards\.num_frames\. HCMI_CACHE names another folder"):
        keep_features(untrained(clip, reader), [reader], "float32")
