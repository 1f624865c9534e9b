"""What would end or spoil a run, one at a time: what doctor says, and that training says the same."""

import dataclasses
import shutil
import warnings

import pytest
from checkpoint_world import save_siglip_2_naflex
from model_world import PARAMS, changed, save_small_siglip
from ruamel.yaml import YAML
from video_files import write_grey

from hcmi.config import Params
from hcmi.dataset import build_dataset
from hcmi.doctor import doctor, report_text
from hcmi.doctor import report as report_module
from hcmi.doctor.examine import examine_sample
from hcmi.doctor.problems import folder_problems, training_problems
from hcmi.errors import DecodeError, HcmiError
from hcmi.shards import write_shards
from hcmi.train import RunData, plan_training, preflight

REPORT = {"machine": {"disk_free_gb": 10.0, "memory_free_gb": 4.0}, "captions": {"count": 3, "empty": 0},
          "projected": {"failure_rate": 0.3, "skip_fraction": 0.1, "shards_mb": 100.0}}


def test_nothing_is_found_when_all_is_well(params):
    assert folder_problems(REPORT, ["a.mp4", "ünï/b.mp4"], params.shards) == []


@pytest.mark.parametrize(("change", "message"), [
    ({"projected": {"failure_rate": 0.2, "skip_fraction": 0.2, "shards_mb": 0.0}},
     "videos: need at most 10% that can be opened but not decoded, got 20% of those that can be opened."),
    ({"projected": {"failure_rate": 1.0, "skip_fraction": 0.0, "shards_mb": 0.0}},
     "videos: need at least one that can be decoded, got none in the sample."),
    ({"projected": {"failure_rate": 0.0, "skip_fraction": 0.0, "shards_mb": 20_000.0}},
     "disk: need 20.0 GB for the shards, got 10.0 GB."),
    ({"captions": {"count": 2, "empty": 2}}, "captions: need some to train and evaluate, got 2 empty cells. Fill them"),
    ({"captions": None}, "captions: need captions.csv to train and evaluate, got none. Without it")])
def test_problem_is_found_when_the_report_has(params, change, message):
    problem, = folder_problems({**REPORT, **change}, [], params.shards)
    assert problem.startswith(message)


def test_problem_is_found_when_a_name_is_no_text(params):
    problem, = folder_problems(REPORT, ["a.mp4", "caf\udce9.mp4"], params.shards)
    assert problem.startswith(r"names: need names in UTF-8, got 1 other, such as caf\xe9.mp4. Rename them")


def test_problem_is_found_when_links_lead_out_of_the_folder(params):
    problem, = folder_problems(REPORT, ["a.mp4", "b.mp4"], params.shards, {"b.mp4"})
    assert problem.startswith("videos: need files in the folder, got 1 link out of it, such as b.mp4. They")


# training

@pytest.fixture(scope="module")
def good(folder, tmp_path_factory):
    """Nine videos that can be read, three of each split, with a caption each."""
    place = tmp_path_factory.mktemp("good")
    (place / "videos").mkdir()
    rows = ["video,caption,split"]
    for number, split in enumerate(["train", "val", "test"] * 3):
        shutil.copy(folder / "videos" / "two.mp4", place / "videos" / f"{number}.mp4")
        rows.append(f"{number}.mp4,a grey film {number},{split}")
    (place / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return place


@pytest.fixture(autouse=True)
def looked_at_once(sample, monkeypatch):
    """The files were looked at before: each look starts processes."""
    monkeypatch.setattr(report_module, "examine_sample", lambda *_: sample)


@pytest.fixture(scope="module")
def sample(good, params):
    return examine_sample({"0.mp4": good / "videos" / "0.mp4"}, params.shards, 60)


def with_values(params: Params, **sections) -> Params:
    return params.model_copy(update={name: changed(getattr(params, name), **values)
                                     for name, values in sections.items()})


def problems(folder, params) -> list[str]:
    return doctor(folder, params, sample=1)["problems"]


@pytest.fixture
def many(monkeypatch):
    """Three clips are enough."""
    monkeypatch.setattr(preflight, "FEW_CLIPS", 3)


def test_doctor_is_ready_when_nothing_is_wrong(good, params, many):
    found = doctor(good, params, sample=1)
    assert found["problems"] == []
    assert found["memory_needed_gb"] > 0.5
    assert "\nready: no problem found\nnext: hcmi search" in report_text(found)


CASES = [
    ({"train": {"device": "cuda:99"}}, "device: need a CUDA GPU for 'cuda:99', got"),
    ({"shards": {"size": 65}}, "model.scratch.patch: need a divisor of shards.size=65, got 8. Change one of them."),
    ({"train": {"num_workers": 10**7}}, "memory: need about "),
    ({"train": {"towers": "frozen"}}, "train.towers frozen: need a pretrained model.backbone, got scratch"),
    ({"model": {"backbone": "nothing/here_at_all"}, "train": {"lr": 1e-4, "backbone_lr": 1e-7}},
     "model.backbone 'nothing/here_at_all': need a "),
    ({"train": {"loss": {**PARAMS.train.loss.model_dump(), "denoise": "mask", "denoise_by": "tag"}}},
     "train.loss.denoise_by tag: need the tag"),
    ({"train": {"epochs": 0}}, "train.epochs: need 1 or more for model.backbone scratch"),
    ({"shards": {"num_frames": 5}}, "model.num_frames: need at most shards.num_frames=5, got 12."),
    ({"model": {"backbone": "clip"}, "train": {"lr": 1e-4, "backbone_lr": 4e-3}},
     "train.backbone_lr: need at most 1e-05 for pretrained towers, got 0.004: they forget what they know."),
    ({"model": {"backbone": "clip"}, "train": {"lr": 4e-3, "backbone_lr": 1e-7}},
     "train.lr: need at most 0.001 on pretrained towers, got 0.004."),
    ({"model": {"backbone": "clip"}, "train": {"lr": 1e-4, "backbone_lr": 1e-7}, "shards": {"size": 32}},
     "shards.size: need the 64 pixels that ")]


@pytest.mark.parametrize(("changes", "message"), CASES)
def test_doctor_says_what_would_end_or_spoil_training(good, params, checkpoint, many, monkeypatch, changes, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if changes.get("model", {}).get("backbone") == "clip":
        changes = {**changes, "model": {"backbone": str(checkpoint)}}
    problem, = problems(good, with_values(params, **changes))
    assert problem.startswith(message)


@pytest.mark.parametrize(("save", "size"), [(save_siglip_2_naflex, 128), (save_small_siglip, 32)])
def test_doctor_says_nothing_of_frames_when_the_stage_makes_them_for_the_backbone(params, tmp_path, save, size):
    tried = with_values(params, model={"backbone": str(save(tmp_path / "towers"))},
                        train={"lr": 1e-4, "backbone_lr": 1e-7, "device": "cpu"}, shards={"size": size, "fit": "auto"})
    data = RunData({split: [["a film"]] for split in ("train", "val", "test")}, size)
    with warnings.catch_warnings(record=True) as said:
        found, preflight_found = training_problems(data, tried)
    assert found == []
    assert preflight_found.memory is not None
    assert not [str(one.message) for one in said if "frames are" in str(one.message)]


@pytest.fixture(scope="module")
def shards_of(tmp_path_factory):
    """The shards that the stages make of nine films, as these sections say."""
    place, made = tmp_path_factory.mktemp("films"), {}
    rows = ["video,caption,split"]
    for number, split in enumerate(["train", "val", "test"] * 3):
        write_grey(place / "set/videos" / f"{number}.mp4", num_frames=20 + number, fps=10)
        rows.append(f"{number}.mp4,a grey film {number},{split}")
    (place / "set/captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def make(params: Params):
        key = params.shards.model_dump_json()
        if key not in made:
            folder = made[key] = place / str(len(made))
            build_dataset(config=changed(params.dataset, name="folder", path=str(place / "set")),
                          manifest_dir=folder / "manifest", generated_dir=folder / "generated",
                          incoming_dir=folder / "incoming")
            write_shards(manifest_path=folder / "manifest/manifest.parquet", out_dir=folder / "shards",
                         config=params.shards)
        return made[key] / "shards", place / "set"

    return make


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, *(changes for changes, _ in CASES)], ids=str)
def test_training_refuses_only_what_doctor_has_named(shards_of, params, checkpoint, many, monkeypatch, changes):
    """Doctor before there are shards; then the stages, and the check with which `hcmi train` starts."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if changes.get("model", {}).get("backbone") == "clip":
        changes = {**changes, "model": {"backbone": str(checkpoint)}}
    tried = with_values(params, **changes)
    shards, folder = shards_of(tried)
    named = problems(folder, tried)
    try:
        refused = plan_training(shards_dir=shards, model_config=tried.model, config=tried.train)["problems"]
    except HcmiError as error:
        refused = [str(error)]
    assert bool(named) == bool(changes)
    assert {problem.partition(":")[0] for problem in refused} <= {problem.partition(":")[0] for problem in named}


def test_doctor_counts_no_clip_of_a_video_that_is_known_to_be_broken(good, params, sample, monkeypatch):
    broken = dataclasses.replace(sample, bad={"3.mp4": DecodeError("not_a_video", "3.mp4: need a video")})
    monkeypatch.setattr(report_module, "examine_sample", lambda *_: broken)
    problem, = problems(good, params)       # of the videos 0, 3 and 6
    assert "for a search that means something, got 2." in problem


def test_doctor_says_how_many_clips_are_too_few(good, params):
    problem, = problems(good, params)
    assert problem.startswith("training from nothing: need about 1,000 clips for a search that means something, got 3.")
    assert "presets/laptop.yaml" in problem


@pytest.mark.parametrize(("split", "message"), [
    ("train", "split train: need at least one clip, got none. Give more videos the split 'train'."),
    ("val", "split val: need at least one clip, got none."),
    ("test", "split test: need at least one clip for evaluate.split, got none.")])
def test_doctor_finds_a_split_without_clips(good, params, tmp_path, many, split, message):
    shutil.copytree(good, tmp_path / "set")
    table = (good / "captions.csv").read_text().replace(f",{split}\n", f",{'val' if split != 'val' else 'train'}\n")
    (tmp_path / "set" / "captions.csv").write_text(table)
    found = [problem for problem in problems(tmp_path / "set", params) if problem.startswith("split")]
    assert [problem.startswith(message) for problem in found] == [True]


def test_doctor_counts_the_videos_that_are_missing(good, params, tmp_path, many):
    shutil.copytree(good, tmp_path / "set")
    with open(tmp_path / "set" / "captions.csv", "a", encoding="utf-8") as file:
        file.writelines(f"gone_{number}.mp4,a film,train\n" for number in range(9991))
    problem, = problems(tmp_path / "set", params)
    assert problem.startswith("videos: need at least 50% of those that the captions name, got 9 and 9,991 missing "
                              "ones. Put their files")


# no project yet

def test_doctor_needs_no_parameters_and_proposes_what_to_type(good):
    found = doctor(good, None, sample=1)
    assert found["problems"] == []
    assert found["memory_needed_gb"] is None
    assert any(command.startswith(f'hcmi search "what you look for" --videos {good} --model') for command
               in found["next"])


def test_doctor_proposes_the_next_stage_when_the_folder_is_the_projects_own(good, params, many):
    own = with_values(params, dataset={"name": "folder", "path": str(good)})
    assert doctor(good, own, sample=1)["next"] == ["dvc repro"]


def test_proposed_preset_is_one_that_is_there(good, params, repo_root):
    command = next(line for line in doctor(good, params, sample=1)["next"] if "presets/" in line)
    preset = next(word for word in command.replace(")", " ").split() if word.startswith("presets/"))
    assert YAML(typ="safe", pure=True).load(repo_root / preset)
