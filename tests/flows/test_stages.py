"""flows.stages on a toy project: the plan is dvc.yaml alone, and one stage runs as `dvc repro` would run it."""

import shutil
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.stages import Step, changed_outs, is_stale, plan, reproduce


def repro_all() -> None:
    with Repo() as repo:
        repo.reproduce()


def test_plan_is_dvc_yamls_order_and_edges(toy):
    assert plan() == [Step("one", (), False), Step("two", ("one",), True), Step("three", ("one", "two"), False)]


def test_plan_has_a_new_stage_when_dvc_yaml_gets_one(toy):
    with open("dvc.yaml", "a") as file:
        file.write("  four: {cmd: cp three.txt four.txt, deps: [three.txt], outs: [four.txt]}\n")
    assert plan()[-1] == Step("four", ("three",), False)


def test_nothing_is_stale_when_dvc_has_run(toy):
    assert [is_stale(step.name) for step in plan()] == [True, True, True]
    repro_all()
    assert [is_stale(step.name) for step in plan()] == [False, False, False]


def test_one_stage_is_stale_when_its_input_changes(toy):
    repro_all()
    (toy / "in.txt").write_text("other\n")
    assert [is_stale(step.name) for step in plan()] == [True, False, False]
    reproduce("one")
    assert [is_stale(step.name) for step in plan()] == [False, True, True]


def test_stage_is_stale_when_its_parameter_or_output_changes(toy):
    repro_all()
    (toy / "params.yaml").write_text("copies: 3\n")
    (toy / "three.txt").unlink()
    assert [is_stale(step.name) for step in plan()] == [True, False, True]


def test_lock_is_the_same_whether_dvc_or_the_stages_ran(toy, monkeypatch):
    second = shutil.copytree(toy, toy.with_name("second"))
    repro_all()
    monkeypatch.chdir(second)
    for step in plan():
        reproduce(step.name)
    assert (second / "dvc.lock").read_bytes() == (toy / "dvc.lock").read_bytes()


def test_reproduce_ends_in_one_line_when_the_command_fails(toy):
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text.replace("cp in.txt one.txt", "exit 3"))
    with pytest.raises(SystemExit) as failure:
        reproduce("one")
    assert str(failure.value) == "failed to reproduce 'one': failed to run: exit 3, exited with 3"


def test_changed_outs_names_what_the_lock_does_not_pin(toy):
    assert changed_outs("one", "two") == ["one.txt", "two.txt"]
    repro_all()
    assert changed_outs("one", "two") == []
    (toy / "two.txt").chmod(0o644)
    (toy / "two.txt").write_text("by hand\n")
    assert changed_outs("one", "two") == ["two.txt"]
