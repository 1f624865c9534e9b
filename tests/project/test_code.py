"""The notes of the stage `code`: comments leave them as they are, and whatever a stage does is in its own."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from import_graph import ROOT, closure, files_of_stage, imported

from hcmi.project import imports
from hcmi.project.code import normal_form, stage_code

STAGES = ["dataset", "shards", "train", "evaluate", "export", "drift"]
LATER_PYTHONS = ("python3.12", "python3.13")

PLAIN = """
def f(x: int, *, y=2) -> str:
    z = {**x}
    return f"{x!r:>{y}} {z}"
"""
SAME = '''
"""What this module is for."""
X_IS = "no docstring, because it has a name"    # a comment
'''


def form(text: str) -> str:
    return normal_form(ast.parse(text))


# ---------------------------------------------------------------------------------------------------- the normal form

def test_form_of_a_small_module_is_the_one_worked_out_by_hand():
    assert form('"""Doc."""\nx = f"a{y}"  # why\n') == (
        "Module(body=[Assign(targets=[Name(id='x',ctx=Store())],value=JoinedStr(values=[Constant(value='a'),"
        "FormattedValue(value=Name(id='y',ctx=Load()),conversion=-1)]))])")


@pytest.mark.parametrize("text", [
    PLAIN.replace("    z =", '    """What it does."""\n    z ='), f'"""Module."""\n{PLAIN}', f"# why\n\n\n{PLAIN}# end",
    PLAIN.replace("f\"{x!r:>{y}} {z}\"", "(f'{x!r:>{y}} '\n            f'{z}')"),
    PLAIN.replace("    z", "    'bare'\n    z")])
def test_form_is_the_same_when_only_words_places_or_quotes_change(text):
    assert form(text) == form(PLAIN)


@pytest.mark.parametrize(("old", "new"), [
    ("y=2", "y=3"), ("y=2", "y=2.0"), ("y=2", "y=None"), ("*, y", "y"), ("!r", "!s"), ("{**x}", "{'x': x}"),
    (" {z}", ""), ("def f", "async def f"), ("int", "bool"), ("return f", "x = f"), ("    z = {**x}\n", ""),
    ("{**x}", "x.z"), ("{**x}", "['']"), ("{**x}", "[]"), ("\ndef", "\n@cache\ndef"), ("\ndef", "\nimport os\ndef")])
def test_form_differs_when_the_code_does(old, new):
    assert old in PLAIN
    assert form(PLAIN.replace(old, new)) != form(PLAIN)


def test_form_keeps_strings_that_are_values():
    assert form("x = ['']") != form("x = []")
    assert form("x = 'a'") != form("x = 'b'")
    assert form("f('why')") != form("f()")


# ---------------------------------------------------------------------------------------------------------- the notes

def notes(folder: Path, *stages: str, python: str = sys.executable) -> dict[str, str]:
    """The notes of the code in `folder`, as the stage writes them."""
    done = subprocess.run([python, "-m", "hcmi.project.code", *(stages or STAGES)], cwd=folder, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    return {path.stem: path.read_text() for path in (folder / "code").iterdir()}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "hcmi", folder / "hcmi", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def before(copy) -> dict[str, str]:
    return notes(copy)


@pytest.fixture
def changed(copy, before, monkeypatch):
    """Which notes differ after a change of one file, given as what follows its text."""
    monkeypatch.setattr(imports, "ROOT", copy)
    kept: dict[Path, str] = {}

    def change(name: str, text: str, start: str = "") -> set[str]:
        path = copy / name
        kept[path] = path.read_text("utf-8")
        path.write_text(start + kept[path] + text, "utf-8")
        return {stage for stage in STAGES if stage_code(stage) != before[stage]}

    yield change
    for path, text in kept.items():
        path.write_text(text, "utf-8")


def test_note_has_a_line_for_each_file_of_the_stage(copy, before):
    for stage in STAGES:
        names = [line.split("  ")[1] for line in before[stage].splitlines()]
        assert names == [path.relative_to(ROOT).as_posix() for path in files_of_stage(stage)]
        assert len(set(names)) == len(names) > 15
    assert {"hcmi/drift/static/page.css"} <= {line.split("  ")[1] for line in before["drift"].splitlines()}


def test_comments_and_docstrings_change_no_note(changed):
    assert changed("hcmi/types.py", "# a comment\n") == set()
    assert changed("hcmi/progress.py", "", start='"""In other words."""\n# and a comment\n') == set()


@pytest.mark.parametrize(("name", "stages"), [
    ("train/curves", {"train"}), ("scenes/sampling", {"dataset"}), ("export/stage", {"export"}), ("types", set(STAGES)),
    ("cli", set()), ("serve/app", set())])
def test_code_changes_the_notes_of_the_stages_that_use_it(changed, name, stages):
    assert changed(f"hcmi/{name}.py", "PLANTED = 1\n") == stages


def test_page_that_a_stage_copies_is_part_of_its_code(changed):
    assert changed("hcmi/drift/static/page.css", "/* other */") == {"drift"}


def test_new_import_brings_its_module_into_the_note(changed):
    assert changed("hcmi/export/stage.py", "def late():\n    from hcmi.scenes import write_scenes\n") == {"export"}
    assert "  hcmi/scenes/render.py\n" in stage_code("export")


@pytest.mark.parametrize("python", LATER_PYTHONS)
def test_notes_are_the_same_in_later_pythons(copy, before, python):
    if subprocess.run([python, "-V"], capture_output=True).returncode if shutil.which(python) else True:
        pytest.skip(f"{python} is not there")
    assert notes(copy, python=python) == before


def test_notes_need_neither_torch_nor_another_library(copy, before):
    code = """
import runpy, sys
sys.path.insert(0, ".")
sys.argv[1:] = ["train"]
runpy.run_module("hcmi.project.code", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=copy, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (copy / "code/train.txt").read_text() == before["train"]


@pytest.mark.parametrize(("stages", "text", "line"), [
    ([], "", "hcmi.project.code: need the names of stages, got none. Name them."),
    (["train", "trian"], "", "hcmi: stage trian: need a verb of hcmi, got none. Name stages such as train."),
    (["train"], "x = (\n",
     "hcmi: {copy}/hcmi/train/curves.py:{end}: need Python, got: '(' was never closed. Correct it.")])
def test_what_cannot_be_noted_ends_in_one_line_and_writes_nothing(copy, before, stages, text, line):
    path = copy / "hcmi/train/curves.py"
    kept = path.read_text("utf-8")
    path.write_text(kept + text, "utf-8")
    try:
        done = subprocess.run([sys.executable, "-m", "hcmi.project.code", *stages], cwd=copy, text=True,
                              capture_output=True, env={**os.environ, "PYTHONPATH": ""})
    finally:
        path.write_text(kept, "utf-8")
    assert (done.returncode, done.stderr) == (1, line.format(copy=copy, end=len(kept.splitlines()) + 1) + "\n")
    assert (copy / "code/train.txt").read_text() == before["train"]


# -------------------------------------------------------------------------------- which modules a stage uses, once more

def left_out(files: list[Path]) -> set[str]:
    """Slow oracle, without a parser: modules that a line of one of these files imports and that are not among them.

    A name that a room exports is looked for in the text of the room's __init__.py.
    """
    missing = set()
    for path in files:
        text = path.read_text("utf-8") if path.suffix == ".py" else ""
        text = re.sub(r"\bif TYPE_CHECKING:\n(?:    .*\n)+", "", text)
        for module, inside, names in re.findall(r"^ *from (hcmi[.\w]*) import (?:\(([^)]*)\)|(.*))", text, re.M):
            for name in re.findall(r"(\w+)(?: as \w+)?(?:,|\s|$)", inside or names.partition("#")[0]):
                found = ROOT / f"{module.replace('.', '/')}/{name}.py"
                door = ROOT / module.replace(".", "/") / "__init__.py"
                if not found.is_file() and module != "hcmi" and door.is_file():
                    said = re.findall(r"^from (\S+) import (?:\(([^)]*)\)|(.*))", door.read_text("utf-8"), re.M)
                    found = next(ROOT / f"{source.replace('.', '/')}.py" for source, *listed in said
                                 if re.search(rf"\b{name}\b", "".join(listed)))
                elif not found.is_file() and module != "hcmi":
                    found = ROOT / f"{module.replace('.', '/')}.py"
                if found.is_file() and found not in files:
                    missing.add(found.relative_to(ROOT).as_posix())
    return missing


@pytest.mark.parametrize("stage", STAGES)
def test_oracle_finds_no_module_that_was_left_out(stage):
    files = files_of_stage(stage)
    assert left_out(files) == set()
    last = next(path for path in reversed(files) if path.suffix == ".py")
    assert left_out([path for path in files if path != last]) == {last.relative_to(ROOT).as_posix()}    # planted


def test_oracle_catches_a_closure_that_looks_at_the_heads_of_modules_alone(monkeypatch):
    def at_the_head(tree: ast.AST) -> list:
        return [item for item in ast.iter_child_nodes(tree) if isinstance(item, (ast.Import, ast.ImportFrom))]

    starts = imports.verb_imports("drift")
    monkeypatch.setattr(imports, "statements", at_the_head)
    monkeypatch.setattr(imports, "_imported_by", imports._imported_by.__wrapped__)      # without its memory
    assert left_out(sorted(imports.closure(starts)))


def test_closure_finds_a_planted_import():
    assert imported(ast.parse("def f():\n    from hcmi.video import probe\n    import hcmi.train.loss")) == {
        "hcmi.video.packets", "hcmi.train.loss"}
    assert ROOT / "hcmi/errors.py" in closure({"hcmi.config"})
