"""The arithmetic of the benchmarks that compare training runs, on records made up here."""

import json
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from model_world import PARAMS, SIZE, changed, tiny_model

import hcmi.model
from hcmi.dataset import write_manifest
from hcmi.model import encode_texts, score
from hcmi.scenes import phrase, single_events, write_gallery
from hcmi.scenes.galleries import SIZES, TWIN_SIZES, gallery
from hcmi.shards import ShardReader, eval_batches, write_shards

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def benchmarks(monkeypatch):
    """The scripts as modules: a script's own folder is on its path."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import heads
    import runs

    yield heads, runs
    for name in ("ablation", "balance", "tuning", "heads", "moments", "runs", "common"):
        sys.modules.pop(name, None)


def record(seed: int, **r1: float) -> dict:
    return {"seed": seed, "device": "cpu", "r1": r1}


def test_interval_is_students_when_worked_by_hand(benchmarks):
    _, runs = benchmarks
    # mean 2, standard deviation 1, t(0.975, 2) = 4.3027: 2 -+ 4.3027 / sqrt(3)
    assert runs.interval([1.0, 2.0, 3.0]) == pytest.approx([-0.4841, 4.4841], abs=1e-4)
    assert runs.interval([5.0, 6.0]) is None


def test_lead_is_paired_by_seed_when_records_come_in_any_order(benchmarks):
    heads, _ = benchmarks
    records = {"hcmi": [record(0, main=70.0), record(1, main=66.0), record(2, main=68.0)],
               "wti": [record(1, main=60.0), record(2, main=62.5), record(0, main=65.0)],
               "mean_pool": [record(0, main=40.0), record(1, main=50.0)],
               "hcmi, MSE off": [record(0, main=69.0)], "xclip": [record(0, long=99.0)]}
    best, best_r1, lead, between = heads.lead_over_best(records, "main")
    assert (best, best_r1, lead) == ("wti", 62.5, 5.5)      # 70 - 65, 66 - 60 and 68 - 62.5
    assert between == pytest.approx([5.5 - 4.3027 * 0.5 / 3**0.5, 5.5 + 4.3027 * 0.5 / 3**0.5], abs=1e-3)
    rows = {row[1]: row for row in heads.compare(records, "main")}
    assert rows["mean_pool"][2:6:3] == (2, 23.0)
    assert rows["mean_pool"][3] == 45.0
    assert rows["hcmi"][5:] == (None, None)
    assert rows["hcmi, MSE off"][4:] == (None, 1.0, None)
    assert "xclip" not in rows, "it was not measured on this gallery"


def test_runs_are_paired_where_both_were_made_when_some_are_missing(benchmarks):
    _, runs = benchmarks
    ours = [record(2, main=9.0), record(0, main=5.0), {**record(1, main=7.0), "device": "cuda"}]
    others = [record(0, main=1.0), record(1, main=2.0), {**record(1, main=4.0), "device": "cuda"}]
    assert runs.paired(ours, others, "main") == [4.0, 3.0]      # seed 0 on the processor, seed 1 on the GPU


def test_ablation_has_the_gains_of_the_runs_that_were_made_and_no_others(benchmarks):
    import ablation

    variants = {"shipped": [record(0, main=90.0, attribute=80.0), record(1, main=94.0, attribute=82.0)],
                "MSE off": [record(1, main=91.0, attribute=75.0)]}
    noise = {(512, 40, "off"): [record(0, main=60.0), record(1, main=62.0), record(2, main=64.0)],
             (512, 40, "positive, true pairs"): [record(2, main=65.0), record(1, main=63.0), record(0, main=61.0)],
             (64, 20, "off"): [record(0, main=70.0)]}
    assert ablation.headline(variants, noise) == {
        "runs_shipped": 2, "gain_over_MSE_off": 3.0, "mse_gain_attribute": 7.0, "mse_gain_attribute_ci95": None,
        "ald_gain_true_pairs_40_large_batch": 1.0, "ald_gain_true_pairs_40_large_batch_ci95": [1.0, 1.0]}


def test_weight_of_the_balance_is_the_least_that_finds_enough_orders_on_validation(benchmarks):
    import balance
    def run(seed, val_order, order):
        r1 = dict.fromkeys((*balance.CHOICE, *balance.SHOWN), 50.0) | {"val/order": val_order, "order": order}
        return record(seed, **r1)
    unmeasured = record(3, order=99.0)
    found = balance.rows(balance.measured_on("val/order", {
        0.0: [run(0, 80.0, 99.0)], 0.01: [run(0, 93.0, 94.0), run(1, 93.8, 94.0), unmeasured],
        0.02: [run(0, 93.5, 80.0)], 0.03: [run(0, 97.0, 97.0)], 0.04: [unmeasured]}))
    assert [(weight, row["val/order"], row["order"], row["runs"]) for weight, row in found.items()] == [
        (0.0, 80.0, 99.0, 1), (0.01, pytest.approx(93.4), 94.0, 2), (0.02, 93.5, 80.0, 1), (0.03, 97.0, 97.0, 1)]
    assert balance.chosen(found) == 0.02
    assert balance.chosen({0.0: found[0.0]}) is None


def test_best_setting_of_a_head_is_that_of_validation_and_counts_from_the_usual_one(benchmarks):
    import tuning
    def run(val, main):
        return record(3, **dict.fromkeys(tuning.CHOICE, val), **dict.fromkeys(tuning.SHOWN, main))
    shipped, other, slow, _, faster = tuning.settings("wti", 0.004)
    assert (shipped, other, slow, faster) == (("wti", 128, 0.004), ("wti", 64, 0.004), ("wti", 128, 0.002),
                                              ("wti", 128, 0.016))
    found = tuning.rows({("hcmi", 64, 0.004): [run(90.0, 90.0)], ("hcmi", 128, 0.004): [run(80.0, 99.0)],
                         shipped: [run(60.0, 99.0)], other: [record(3, main=99.0)], slow: [run(63.5, 20.0)],
                         ("xclip", 128, 0.004): [run(50.0, 50.0)]})       # no other setting: none is the best
    assert other not in found, "it was not measured on validation"
    assert tuning.headline(found) == {"hcmi_best_batch": 64, "hcmi_best_lr": 0.004, "hcmi_gain_of_best": 0.0,
                                      "wti_best_batch": 128, "wti_best_lr": 0.002, "wti_gain_of_best": 3.5}


def test_galleries_of_the_same_films_share_their_folder(benchmarks):
    _, runs = benchmarks
    spec = runs.Spec("standard")
    assert spec.folder("event") == spec.folder("main") != spec.folder("crowd")
    assert spec.folder("val/event") == spec.folder("val/main") != spec.folder("main")
    measured = {runs.split_of(name) for names in runs.GALLERIES.values() for name in names}
    assert {name for name, split in measured if split == "test"} == {*SIZES, *TWIN_SIZES}, "a run measures each"
    assert {(name, split) for name, split in measured if split != "test"} == {
        ("main", "val"), ("event", "val"), ("order", "val")}
    assert {data for data, names in runs.GALLERIES.items() if "crowd" in names} == {"standard"}, "it is large"


def test_table_of_single_events_has_the_mean_figures_when_some_runs_lack_them(benchmarks):
    heads, _ = benchmarks
    def measured(r1, r10, precision):
        return {"r1": {"event": r1}, "r10": {"event": r10}, "map": {"event": precision}}
    records = {"hcmi": [measured(70.0, 97.0, 60.0), measured(72.0, 99.0, 63.0)], "wti": [record(0, long=9.0)]}
    assert heads.event_rows(records) == [("hcmi", 2, 71.0, 98.0, 61.5)]


def test_headline_has_each_figure_from_the_runs_that_were_measured_so(benchmarks):
    heads, _ = benchmarks
    def run(seed, main, event, minutes, device="cpu"):
        r1 = {"main": main, "event": event}
        return {"seed": seed, "device": device, "cpu_minutes": minutes, "r1": r1, "r10": {"event": 99.0},
                "map": {"event": 50.0}}
    long = {**record(0, long=80.0), "cpu_minutes": 99.0}
    records = {"hcmi": [run(0, 90.0, 70.0, 14.0), run(1, 92.0, 74.0, 16.0), long],
               "wti": [run(0, 85.0, 40.0, 13.0), run(1, 86.0, 50.0, 1.0, "cuda")]}
    figures = heads.headline(records)
    needed = {"runs_hcmi": 2, "runs_wti": 2, "runs_xclip": 0, "hcmi_t2v_r1": 91.0, "best_other_t2v_r1": 85.5,
              "gain_over_best": 5.0, "event_r1": 72.0, "event_r10": 99.0, "event_map": 50.0, "gain_event": 30.0,
              "cpu_minutes_hcmi": 15.0, "cpu_minutes_wti": 13.0, "cpu_minutes_xclip": None}
    assert {name: figures.get(name, "missing") for name in needed} == needed
    assert not {"order_r1", "gain_attribute", "gain_long"} & figures.keys(), "no run was measured there"


def test_figures_of_version_2_are_of_its_own_runs(benchmarks):
    heads, _ = benchmarks
    runs = {"hcmi": [record(0, main=70.0, number=50.0), record(1, main=74.0, number=54.0)],
            "wti": [record(1, main=60.0)]}
    assert heads.second_headline(runs) == {
        "version_2_runs_hcmi": 2, "version_2_runs_wti": 1, "version_2_main_r1": 72.0,
        "version_2_main_best_other": 60.0, "version_2_gain_main": 14.0, "version_2_gain_main_ci95": None}
    assert heads.second_headline({}) == {}
    folders = {spec.folder("main") for specs in heads.second_specs(1).values() for spec in specs}
    assert len(folders) == 1
    assert not folders & {spec.folder("main") for spec in heads.specs(False, 1)["wti"]}


@pytest.mark.parametrize("found", [{}, {"wti": [{**record(0, main=85.0), "r10": {}, "map": {}}]}])
def test_so_far_prints_what_there_is_and_writes_nothing_when_hcmi_was_not_run(benchmarks, monkeypatch, capsys, found):
    heads, _ = benchmarks
    monkeypatch.setattr(sys, "argv", ["heads.py", "--so-far"])
    monkeypatch.setattr(heads, "records_of", lambda *_: found)
    monkeypatch.setattr(heads, "write_result", lambda *_: pytest.fail("wrote a result of nothing"))
    heads.main()
    assert ("wti" in capsys.readouterr().out) == bool(found)


@pytest.fixture
def eight_clips(tmp_path, monkeypatch):
    """Shards of the galleries `main` and `event`, cut to 8 clips."""
    for name in ("main", "event"):
        monkeypatch.setitem(SIZES, name, 8)
    write_manifest(write_gallery("main", tmp_path / "films"), tmp_path / "manifest.parquet")
    write_shards(manifest_path=tmp_path / "manifest.parquet", out_dir=tmp_path / "shards",
                 config=changed(PARAMS.shards, size=SIZE, num_frames=4, num_workers=1))
    return tmp_path / "shards"


def precision_by_loops(scores, right):
    """Average precision of a query without ties."""
    order = sorted(range(len(scores)), key=lambda column: -scores[column])
    places = [place for place, column in enumerate(order, start=1) if column in right]
    return sum(found / place for found, place in enumerate(places, start=1)) / len(places)


def test_measured_figures_are_those_of_a_loop_over_the_queries(benchmarks, eight_clips, monkeypatch):
    _, runs = benchmarks
    clips = gallery("main")
    model = tiny_model(wild=True, captions=[caption for clip in clips for caption in clip.captions])
    encodings = []
    encode = hcmi.model.encode_videos
    monkeypatch.setattr(hcmi.model, "encode_videos", lambda *args: encodings.append(args) or encode(*args))
    figures = runs.measure(model, {"main": eight_clips, "event": eight_clips})
    assert len(encodings) == 1, "both galleries have the same films"

    reader = ShardReader(eight_clips, "test")
    videos = encode(model, eval_batches(reader, 8, model.config.num_frames))
    asked = {"main": [(caption, {row}) for row, clip in enumerate(clips) for caption in clip.captions],
             "event": [(phrase(event), {row for row, other in enumerate(clips)
                                        if phrase(event) in map(phrase, other.events)})
                       for clip in clips for event in single_events(clip.events)]}
    for name, queries in asked.items():
        sims_QV = model.combine(score(model, encode_texts(model, [text for text, _ in queries]), videos)).tolist()
        firsts = [max(range(8), key=scores.__getitem__) in right
                  for scores, (_, right) in zip(sims_QV, queries, strict=True)]
        precisions = [precision_by_loops(scores, right)
                      for scores, (_, right) in zip(sims_QV, queries, strict=True)]
        assert figures["r1"][name] == pytest.approx(100 * sum(firsts) / len(queries), abs=0.01)
        assert figures["map"][name] == pytest.approx(100 * sum(precisions) / len(queries), abs=0.01)
        assert figures["r10"][name] == 100
        assert set(figures["levels_r1"][name]) == set(model.head.levels)


def test_moments_prints_the_figures_of_the_gallery_of_single_events(benchmarks, eight_clips, tmp_path, monkeypatch,
                                                                   capsys):
    """The whole script, on eight clips: its figures over all clips are those of the gallery `event`."""
    _, runs = benchmarks
    import common
    import moments

    clips = gallery("main")
    model = tiny_model(wild=True, captions=[caption for clip in clips for caption in clip.captions])
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["moments.py", "--quick", "--model", str(tmp_path / "model"), "--shards",
                                      str(eight_clips), "--annotation", str(tmp_path / "films/annotation.jsonl")])
    moments.main()
    figures = json.loads((tmp_path / "results/moments.quick.json").read_text(encoding="utf-8"))["figures"]
    measured = runs.measure(model, {"main": eight_clips, "event": eight_clips})
    assert figures["queries"] == sum(len(single_events(clip.events)) for clip in clips)
    assert figures["first_hit_shows_it"] == pytest.approx(measured["r1"]["event"], abs=0.01)
    assert figures["whole_captions_r1"] == pytest.approx(measured["r1"]["main"], abs=0.01)
    assert 0 <= figures["r1_iou50"] <= 100
    assert "whole_clip_r1_iou50" in capsys.readouterr().out


def test_spec_key_follows_what_is_trained_and_not_where(benchmarks):
    _, runs = benchmarks
    spec = runs.Spec("standard", 1, {"train.epochs": 3})
    assert spec.resolved().train.epochs == 3
    assert spec.resolved().train.seed == 1
    assert spec.key("cuda:0") == spec.key("cuda:1") != spec.key("cpu")
    others = [runs.Spec("quick", 1, {"train.epochs": 3}), runs.Spec("standard", 2, {"train.epochs": 3}),
              runs.Spec("standard", 1, {"train.epochs": 4}), runs.Spec("long", 1, {"train.epochs": 3})]
    assert len({spec.key("cpu"), *(other.key("cpu") for other in others)}) == 5
    with pytest.raises(AssertionError, match=r"params\.yaml has no train\.epoch$"):
        runs.Spec("standard", 0, {"train.epoch": 3}).resolved()


def test_spec_key_of_a_peer_ignores_the_loss_it_does_not_use(benchmarks):
    _, runs = benchmarks

    def key(head, margin):
        return runs.Spec("standard", 0, {"model.head": head, "train.loss.margin": margin}).key("cpu")

    assert key("wti", 0.2) == key("wti", 0.4)
    assert key("hcmi", 0.2) != key("hcmi", 0.4)


def test_data_lie_elsewhere_when_they_are_made_in_another_way(benchmarks, monkeypatch):
    _, runs = benchmarks
    spec = runs.Spec("standard", 1)
    folder, key, gallery = spec.folder(), spec.key("cpu"), spec.folder("main")
    assert runs.Spec("standard", 2, {"train.epochs": 3}).folder() == folder != runs.Spec("quick").folder()
    assert runs.Spec("noise_20").folder("main") == gallery != spec.folder("order")
    monkeypatch.setitem(runs.DATA, "standard", runs.STANDARD.model_copy(update={"event_captions": 0}))
    assert spec.folder() != folder
    assert spec.key("cpu") != key
    assert spec.folder("main") == gallery, "galleries are made in one way only"


def test_code_identity_changes_with_the_code_and_not_with_its_comments(benchmarks, tmp_path, monkeypatch):
    _, runs = benchmarks
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    found = []
    for text in ('"""One."""\ndef f():\n    """Two."""\n    return 1\n', 'def f():\n    return 1     # why\n',
                 'def f():\n    return 2\n'):
        (tmp_path / "code.py").write_text(text, encoding="utf-8")
        found.append(runs.code_identity(["code.py"]))
    assert found[0] == found[1] != found[2]
    assert found[2].startswith("d17a99c2e9eb"), "other versions of Python give other keys: all runs would be made anew"


def test_benchmarks_ask_for_parameters_that_there_are(benchmarks):
    heads, _ = benchmarks
    import ablation
    import tuning

    wanted = [heads.specs(False, 1), heads.specs(True, 1), heads.second_specs(1), ablation.variant_specs(1),
              ablation.noise_specs(1), tuning.specs(1)]
    for spec in chain(*(specs for by_name in wanted for specs in by_name.values())):
        assert spec.resolved().train.seed == spec.seed


def test_committed_results_are_replaced_only_when_that_is_asked_for(benchmarks, tmp_path, monkeypatch):
    import common

    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(common, "SCRATCH", tmp_path / "scratch")
    first = common.write_result("made", {"one": 1}, quick=False)
    assert first == tmp_path / "results/made.json"
    before = first.read_bytes()
    assert common.write_result("made", {"one": 2}, quick=False) == tmp_path / "scratch/results/made.json"
    assert common.write_result("made", {"one": 2}, quick=True) == tmp_path / "results/made.quick.json"
    assert first.read_bytes() == before
    monkeypatch.setenv("KEEP", "1")
    assert common.write_result("made", {"one": 2}, quick=False) == first
    assert first.read_bytes() != before


def test_parameters_of_the_last_commit_are_measured_whatever_the_workspace_holds(benchmarks, tmp_path, monkeypatch):
    import common

    git = ["git", "-c", "user.name=a", "-c", "user.email=a@localhost", "-c", "commit.gpgsign=false"]
    for name in ("ROOT", "RESULTS"):
        monkeypatch.setattr(common, name, tmp_path)
    monkeypatch.setattr(common, "SCRATCH", tmp_path / ".bench")
    (tmp_path / "params.yaml").write_text("shipped: 1\n")
    assert common.shipped_params() == tmp_path / "params.yaml"      # no git
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    assert common.shipped_params() == tmp_path / "params.yaml"
    (tmp_path / "params.yaml").write_text("tried: 2\n")
    assert common.shipped_params().read_text() == "shipped: 1\n"


LOCK = """
schema: '2.0'
stages:
  shards: {cmd: a, deps: [], params: {params.yaml: {shards.size: 32}}, outs: [{path: data/shards, md5: x}]}
  train: {cmd: b, deps: [{path: data/shards, md5: x}], params: {params.yaml: {train.lr: 0.1, train.seed: 0}},
          outs: [{path: models/hcmi, md5: y}]}
"""


@pytest.mark.parametrize(("lock", "changed", "path", "says"), [
    (LOCK, [], "models/hcmi", None),
    (LOCK.replace("lr: 0.1", "lr: 0.2"), [], "models/hcmi", "got one made with train.lr=0.2. Run `make repro`"),
    (LOCK.replace("lr: 0.1", "lr: 0.2"), [], "data/shards", None),
    (LOCK.replace("size: 32", "size: 64"), [], "models/hcmi", "got one made with shards.size=64"),
    (LOCK.replace("seed", "seeds"), [], "models/hcmi", "got one made with train.seeds=0"),
    (LOCK, [], "export", "export: need what the parameters of the last commit make, got none in dvc.lock"),
    ("stages: {}", [], "models/hcmi", "got none in dvc.lock"),
    (LOCK, ["models/hcmi"], "models/hcmi", "models/hcmi: need what dvc.lock pins, got something else")])
def test_outputs_of_an_experiment_are_refused(benchmarks, tmp_path, monkeypatch, lock, changed, path, says):
    import common

    for name in ("ROOT", "RESULTS"):
        monkeypatch.setattr(common, name, tmp_path)
    monkeypatch.setattr("flows.stages.changed_outs", lambda *stages: changed)
    (tmp_path / "params.yaml").write_text("{shards: {size: 32}, train: {lr: 0.1, seed: 0}}\n")
    (tmp_path / "dvc.lock").write_text(lock)
    if says is None:
        assert common.shipped(path) == path
    else:
        with pytest.raises(SystemExit) as refused:
            common.shipped(path)
        assert says in str(refused.value)
        assert "\n" not in str(refused.value)


def test_every_script_asks_whether_outputs_and_parameters_are_the_shipped_ones():
    """An output of the pipeline stands in a benchmark only within `shipped(...)`."""
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        code = re.sub(r'""".*?"""|help="[^"]*"|^STAGES = .*?$', "", text, flags=re.DOTALL | re.MULTILINE)
        assert path.name == "common.py" or not re.search(r'(ROOT|parents\[1\]) / "params.yaml"', code), path.name
        for found in re.finditer(r"""["'](models/hcmi|data/(?:shards|generated|manifest)|export)["'/]""", code):
            assert code[:found.start()].endswith("shipped("), f"{path.name}: {found[0]}"


def test_panels_of_the_heads_have_one_scale(benchmarks, monkeypatch):
    heads, _ = benchmarks
    seen = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: seen.extend(figure.axes))
    heads.draw([("main", "hcmi", 2, 84.0, (83.0, 85.0)), ("main", "wti", 2, 80.0, None),
                ("order", "hcmi", 2, 40.0, (30.0, 50.0)), ("order", "wti", 1, 5.0, None)], "heads.png")
    assert [axes.get_xlim() for axes in seen] == [(0, 100), (0, 100)]


BARE = """
import ast, sys
from importlib.machinery import PathFinder
sys.path.insert(0, sys.argv[1])
ABSENT = {"av", "click", "decord", "dvc", "dvclive", "evidently", "faiss", "fastapi", "matplotlib", "prefect", "scipy",
          "sklearn", "uvicorn"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
import card
sys.meta_path.append(card.StandInFinder)
for node in ast.walk(ast.parse(open(card.__file__).read())):
    if isinstance(node, ast.ImportFrom) and node.module.startswith("hcmi"):
        exec(ast.unparse(node))
print(make_optimizers.__module__)
"""


def test_what_a_gpu_can_do_is_measured_where_little_more_than_torch_is_installed():
    done = subprocess.run([sys.executable, "-c", BARE, str(ROOT / "benchmarks")], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.stdout.strip() == "hcmi.train.optimizers", done.stderr


def test_hour_of_film_has_every_showing_of_an_event_when_one_film_asks_for_it(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import long_videos

    for name in ("long_videos", "moments", "common"):
        sys.modules.pop(name, None)
    (tmp_path / "hour").mkdir()
    (tmp_path / "hour/film.mp4").touch()        # so that no film is made
    first = long_videos.Film(tmp_path, [(tmp_path / "a", (0.0, 10.0))], {
        "event": [("red", [(1.0, 2.0)])], "caption": [("a red one", [(0.0, 10.0)])]}, {"red": [(1.0, 2.0)]})
    second = long_videos.Film(tmp_path, [(tmp_path / "b", (0.0, 5.0))], {
        "event": [("blue", [(3.0, 4.0)])], "caption": []}, {"red": [(0.0, 1.0)], "blue": [(3.0, 4.0)]})
    hour = long_videos.join_all([first, second], tmp_path)
    assert hour.queries == {"event": [("red", [(1.0, 2.0), (10.0, 11.0)]), ("blue", [(13.0, 14.0)])],
                            "caption": [("a red one", [(0.0, 10.0)])]}
    assert hour.clips == [(tmp_path / "a", (0.0, 10.0)), (tmp_path / "b", (10.0, 15.0))]
