"""`hcmi doctor` on a folder whose content is known."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from hydra.core.override_parser.overrides_parser import OverridesParser

from hcmi.cli import main
from hcmi.config import load_params
from hcmi.dataset import SOURCES
from hcmi.dataset.annotations import Source, msvd
from hcmi.doctor import doctor, report_text
from hcmi.doctor.next_steps import override
from hcmi.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def test_doctor_counts_what_is_there_when_the_folder_is_known(folder, params):
    report = doctor(folder, params)
    assert report["videos"] == {"files": 3, "missing": 1, "clips": 3, "sampled": 3}
    assert report["durations_s"] == {"min": 2.0, "median": 3.0, "max": 4.0}
    assert report["captions"] == {"count": 5, "empty": 0, "words": {"min": 1, "median": 2, "max": 3}}
    assert report["reasons"] == {"not_a_video": 1}
    assert report["projected"]["failure_rate"] == 0.3333
    assert report["worst"][:2] == [{"file": "broken.mp4", "why": "not_a_video"}, {"file": "gone.mp4", "why": "missing"}]
    assert report["projected"]["skip_fraction"] == 0
    assert not any(problem.startswith("videos") for problem in report["problems"])      # `dataset` leaves it out
    assert report["notes"] == ["1 file of the 3 looked at cannot be used and will be left out.",
                               "1 name without a file will be left out."]
    assert json.loads(json.dumps(report)) == report
    assert "broken.mp4: not_a_video" in report_text(report)
    assert f"\nnote: {report['notes'][0]}\n" in report_text(report)


def test_doctor_reads_the_annotation_when_the_folder_is_a_published_data_set(folder, params, tmp_path, monkeypatch):
    shutil.copytree(folder / "videos", tmp_path / "videos" / "deeper")
    captions = {"two": ["one", "two words"], "four": ["three whole words"], "gone": ["nobody knows"]}
    (tmp_path / "captions_msvd.json").write_text(json.dumps(captions))
    for split, name in (("train", "two"), ("val", "four"), ("test", "gone")):
        (tmp_path / f"{split}_list.txt").write_text(name)
    monkeypatch.setitem(SOURCES, "msvd", Source(msvd, {"multi": {}}))
    config = params.dataset.model_copy(update={"name": "msvd", "path": str(tmp_path)})
    report = doctor(tmp_path, params.model_copy(update={"dataset": config}))
    assert report["videos"] == {"files": 2, "missing": 1, "clips": 2, "sampled": 2}
    assert report["captions"] == {"count": 4, "empty": 0, "words": {"min": 1, "median": 2, "max": 3}}
    assert report["worst"][0] == {"file": "gone", "why": "missing"}
    assert not any(problem.startswith("captions") for problem in report["problems"])


def test_doctor_says_which_share_of_the_captions_is_cut(folder, params):
    few = params.model.model_copy(update={"num_words": 3, "num_phrases": 3})
    report = doctor(folder, params.model_copy(update={"model": few}))
    assert "of the captions are longer than the 3 tokens that the model reads" in report["captions"]["note"]
    assert f"note: {report['captions']['note']}" in report_text(report).splitlines()


def test_doctor_projects_the_bytes_that_shards_take_when_all_are_sampled(folder, params, tmp_path):
    from hcmi.dataset import build_dataset
    from hcmi.shards import write_shards

    good = tmp_path / "good"
    shutil.copytree(folder, good)
    (good / "captions.csv").write_text("video,caption\ntwo.mp4,grey\nfour.mp4,lighter\n", encoding="utf-8")
    projected = doctor(good, params)["projected"]["shards_mb"]
    config = params.dataset.model_copy(update={"name": "folder", "path": str(good)})
    build_dataset(config=config, manifest_dir=tmp_path / "manifest", generated_dir=tmp_path / "generated",
                  incoming_dir=tmp_path / "incoming")
    stats = write_shards(manifest_path=tmp_path / "manifest/manifest.parquet", out_dir=tmp_path / "shards",
                         config=params.shards)
    assert projected == pytest.approx(stats["bytes"] / 1e6, rel=0.3, abs=0.1)


def test_doctor_refuses_when_there_is_no_video(tmp_path, params):
    (tmp_path / "captions.csv").write_text("video,caption\ngone.mp4,a dog\n")
    with pytest.raises(DataError, match=r"need at least one video file, got 1 name without a file\. Correct"):
        doctor(tmp_path, params)
    with pytest.raises(DataError, match="need a folder of videos, got nothing there"):
        doctor(tmp_path / "absent", params)


def test_doctor_names_the_file_that_is_meant_when_a_caption_names_none(folder, tmp_path, params):
    shutil.copytree(folder / "videos", tmp_path / "videos")
    table = tmp_path / "captions.csv"
    table.write_text("video,caption\nTWO.mp4,a dog\n")
    with pytest.raises(DataError, match=r"got 1 name without a file, such as TWO\.mp4, where there is two\.mp4\."):
        doctor(tmp_path, params)
    table.write_text("video,caption\nTWO.mp4,a dog\nfour.mp4,a cat\n")
    report = doctor(tmp_path, params)
    assert report["notes"] == ["1 name without a file will be left out, such as TWO.mp4, where there is two.mp4."]
    assert report["worst"][0] == {"file": "TWO.mp4", "why": "missing; there is two.mp4"}


def test_doctor_verb_exits_with_1_when_there_are_no_captions(folder, tmp_path):
    shutil.copy(folder / "videos" / "two.mp4", tmp_path / "two.mp4")
    result = CliRunner().invoke(main, ["doctor", str(tmp_path), "--params", str(ROOT / "params.yaml"), "--json"])
    assert result.exit_code == 1
    assert "hcmi search QUERY --videos FOLDER" in json.loads(result.stdout)["problems"][0]


@pytest.mark.parametrize("name", ["Captions.csv", "captions.tsv", "captions.jsonl", "videos/captions.csv"])
def test_doctor_names_the_table_when_it_has_another_name_or_place(folder, tmp_path, params, name):
    (tmp_path / "videos").mkdir()
    shutil.copy(folder / "videos/two.mp4", tmp_path / "videos")
    (tmp_path / name).write_text("video,caption\ntwo.mp4,a dog\n")
    assert doctor(tmp_path, params)["problems"][0].startswith(
        f"captions: need captions.csv to train and evaluate, got {tmp_path / name}. Save it as captions.csv in")


def typed(*arguments: str) -> tuple[int, list[str], list[str]]:
    """Exit code, problems and next commands of `hcmi doctor`, as people read them."""
    done = CliRunner().invoke(main, ["doctor", *arguments])
    lines = done.stdout.splitlines()
    return done.exit_code, *([line.partition(": ")[2] for line in lines if line.startswith(kind)]
                             for kind in ("problem", "next"))


def test_doctor_leads_from_an_empty_folder_through_init_to_a_project(tmp_path, monkeypatch, folder):
    """What it proposes is typed, up to the first step that only a person can do; and it needs no params.yaml."""
    monkeypatch.chdir(tmp_path)
    code, problems, commands = typed()
    assert code == 1
    assert problems == [".: need at least one video file, got none. Make a project here and put videos into "
                        "data/raw/mine/videos, or name a folder with videos."]
    assert commands[0] == "hcmi init ."
    assert CliRunner().invoke(main, commands[0].split()[1:]).exit_code == 0
    assert commands[1].startswith("# put your videos into data/raw/mine/videos, and a row for each caption into ")
    assert commands[2:4] == ["hcmi doctor", "dvc repro"]
    code, problems, commands = typed()      # now of the project's own, still empty data set
    assert (code, commands) == (1, ["hcmi doctor", "dvc repro"])
    assert problems == ["data/raw/mine: need at least one video file, got none. Put your videos into "
                        "data/raw/mine/videos, and a row for each caption into data/raw/mine/captions.csv."]
    shutil.copytree(folder, "data/raw/mine", dirs_exist_ok=True)
    assert typed()[2] == ["git init", "sed -i /no_scm/d .dvc/config", "git add -A", 'git commit -m "Start"',
                          "dvc exp run $(hcmi overrides presets/laptop.yaml)"]
    (tmp_path / ".git").mkdir()
    assert typed()[2] == ["dvc exp run $(hcmi overrides presets/laptop.yaml)"]
    assert typed("data")[2][0].startswith('hcmi search "what you look for" --videos data ')


def test_doctor_proposes_a_new_project_beside_a_folder_that_is_none(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new one").mkdir()
    assert typed("new one")[2][:2] == ["hcmi init 'new one'", "cd 'new one'"]
    commands = typed(str(folder))[2]
    assert commands[0].startswith('hcmi search "what you look for" --videos ')
    assert commands[1:] == ["hcmi init my_project", "cd my_project",
                            f"$EDITOR params.yaml     # dataset.path: {folder}", "hcmi doctor", "dvc repro"]


def test_doctor_asks_for_no_video_where_the_pipeline_makes_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert typed() == (0, [], ["dvc repro"])
    assert doctor("data/raw/scenes", load_params("params.yaml"))["problems"] == []


@pytest.mark.parametrize(("path", "command"), [
    ("tars", "dvc repro"), ("tars/0.tar", "dvc repro"), ("list.txt", "dvc repro"), ("tars/{0..1}.tar", "hcmi dataset"),
    ("https://example.org/{000..003}.tar", "hcmi dataset"), ("pipe:cat tars/0.tar", "hcmi dataset")])
def test_doctor_takes_every_path_that_webdataset_takes(tmp_path, monkeypatch, path, command):
    """DVC needs a path that exists, so `dvc repro` is no next step for a pattern or a URL."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tars").mkdir()
    for number in range(2):
        (tmp_path / f"tars/{number}.tar").write_bytes(bytes(1024))
    (tmp_path / "list.txt").write_text("tars/0.tar\nhttps://example.org/1.tar\n")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("name: scenes", "name: webdataset").replace(
        "path: data/raw/scenes", f"path: {json.dumps(path)}"), encoding="utf-8")
    assert typed() == typed(path) == (0, [], [command])


@pytest.mark.parametrize(("path", "message"), [
    ("typo", "typo: need a tar that can be opened, got nothing there. Correct dataset.path."),
    ("tars/{0..1}.tar", "tars/1.tar: need a tar that can be opened, got nothing there. Correct dataset.path."),
    ("list.txt", "gone.tar: need a tar that can be opened, got nothing there. Correct dataset.path."),
    ("empty", "empty: need tars or a urls.txt that lists some, got none. Correct dataset.path.")])
def test_doctor_refuses_tars_that_are_not_there(tmp_path, monkeypatch, params, path, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("tars", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tars/0.tar").write_bytes(bytes(1024))
    (tmp_path / "list.txt").write_text("tars/0.tar\ngone.tar\n")
    config = params.dataset.model_copy(update={"name": "webdataset", "path": path})
    with pytest.raises(DataError) as refused:
        doctor(path, params.model_copy(update={"dataset": config}))
    assert str(refused.value) == message


def test_doctor_needs_no_folder_of_scenes(tmp_path, monkeypatch):
    """Scenes reads no files; but DVC needs the path."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    assert typed() == (0, [], ["hcmi dataset"])
    (tmp_path / "data/raw/scenes").mkdir(parents=True)
    assert typed() == (0, [], ["dvc repro"])


@pytest.mark.parametrize("name", ["plain/folder-1.2", "my videos (2)", "it's mine", "café/vidéos", "a=b", "a&b",
                                  "[x] y", "a,b", 'quo"te', "back\\slash", 'both\\"', "end\\", "$HOME", "{a: b}"])
def test_path_in_a_next_command_reaches_dvc_as_it_is(name):
    [argument] = shlex.split(override("dataset.path", name))
    parsed = OverridesParser.create().parse_override(argument)
    assert (parsed.key_or_group, parsed.value()) == ("dataset.path", name)
