"""The command line: what `--json` promises."""

import json

import pytest
from click.testing import CliRunner

from hcmi.cli import main

# Verb -> arguments with which it runs in the small project; outputs go to the folder of the test.
RUNS = {
    "dataset": ["--manifest", "OUT/manifest", "--generated", "OUT/generated", "--incoming", "OUT/incoming"],
    "shards": ["--manifest", "manifest.parquet", "--out", "OUT/shards"],
    "train": ["--out", "OUT/model", "--metrics", "OUT/metrics", "--checkpoints", "OUT/checkpoints"],
    "evaluate": ["--model", "model", "--out", "OUT/evaluate.json", "--plots", "OUT/plots"],
    "export": ["--model", "model", "--out", "OUT/export"],
    "drift": ["--model", "model", "--incoming", "incoming", "--out", "OUT/drift"],
    "search": ["red", "--model", "model", "--index", "export/index"],
    "model": ["model"],
    "doctor": ["few"],
    "promote": ["--model", "model", "--releases", "OUT/releases"],
    "add": ["--incoming", "OUT/incoming", "--accepted", "OUT/accepted.json", "--reports", "OUT/reports", "--releases",
            "OUT/releases"],
    "rollback": ["v1", "--releases", "OUT/releases"],
    "releases": ["--releases", "OUT/releases"]}
AFTER_PROMOTE = ("add", "rollback")


def test_every_verb_with_json_is_run_here():
    offer = {name for name, verb in main.commands.items() if any("--json" in option.opts for option in verb.params)}
    assert offer == set(RUNS)


@pytest.mark.parametrize("verb", RUNS)
def test_stdout_is_json_and_nothing_else_when_json_is_asked_for(project, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(project)
    if verb in AFTER_PROMOTE:
        CliRunner().invoke(main, ["promote", "--model", "model", "--releases", str(tmp_path / "releases")])
    arguments = [argument.replace("OUT", str(tmp_path)) for argument in RUNS[verb]]
    done = CliRunner().invoke(main, [verb, *arguments, "--json"])
    assert done.exit_code == (1 if verb == "doctor" else 0), done.stderr      # the folder has no captions
    found = json.loads(done.stdout)
    assert found
    assert isinstance(found, list if verb == "search" else dict)


def test_drift_says_where_its_report_is_when_a_batch_is_called_report(monkeypatch, repo_root):
    monkeypatch.chdir(repo_root)
    monkeypatch.setattr("hcmi.drift.drift", lambda **_: {"verdicts": {"report": "ok", "b": "changed"}})
    done = CliRunner().invoke(main, ["drift", "--out", "reports/watch/all"])
    assert done.stdout.splitlines() == ["report: reports/watch/all/index.html", "report: ok", "b: changed"]
