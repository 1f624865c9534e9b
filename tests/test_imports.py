"""Imports point one way, and each outside library has one owner."""

import ast

import pytest
from import_graph import ROOT, imported

SOURCES = sorted([*ROOT.glob("hcmi/**/*.py"), *ROOT.glob("flows/*.py")])

# Library -> files or folders that may import it.
OWNERS = {
    "decord": ["hcmi/data/frames.py"],
    "av": ["hcmi/data/frames.py", "hcmi/data/scenes.py"],
    "webdataset": ["hcmi/data/shards.py", "hcmi/data/loader.py"],
    "evidently": ["hcmi/drift/"],
    "prefect": ["flows/"],
    "dvc": ["flows/"],
    "dvclive": ["hcmi/training_log.py"],
    "faiss": ["hcmi/index.py"],
    "cv2": [],      # a benchmark's rival, never the project's decoder
}

# Layers from the bottom; a module imports its own layer or lower ones. The first pattern that fits counts.
LAYERS = [
    ["hcmi/types.py", "hcmi/config.py", "hcmi/errors.py", "hcmi/atomic.py", "hcmi/progress.py", "hcmi/runtime.py"],
    ["hcmi/model/", "hcmi/data/", "hcmi/loss.py", "hcmi/metrics.py", "hcmi/postprocess.py"],
    ["hcmi/cli.py", "hcmi/__main__.py"],
    ["hcmi/"],
    ["flows/"],
]
STAGE, CLI = 3, 2       # cli.py sits above the stage modules though it is matched before them


def layer(name: str) -> int:
    found = next(number for number, patterns in enumerate(LAYERS) if any(name.startswith(p) for p in patterns))
    return {CLI: STAGE, STAGE: CLI}.get(found, found)


def names(source) -> set[str]:
    return imported(ast.parse(source.read_text(encoding="utf-8")))


@pytest.mark.parametrize("library", OWNERS)
def test_library_is_imported_by_its_owner_alone(library):
    wrong = [str(path.relative_to(ROOT)) for path in SOURCES
             if any(name.partition(".")[0] == library for name in names(path))
             and not any(str(path.relative_to(ROOT)).startswith(owner) for owner in OWNERS[library])]
    assert not wrong, f"{library} belongs to {OWNERS[library]}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_when_modules_meet(source):
    own = layer(str(source.relative_to(ROOT)))
    for name in names(source):
        if name.partition(".")[0] in ("hcmi", "flows") and name != "hcmi":
            file = name.replace(".", "/")
            target = file + (".py" if (ROOT / f"{file}.py").is_file() else "/__init__.py")
            if target != "hcmi/__init__.py":
                assert layer(target) <= own, f"{source.name} imports {name}, which lies above it"


def test_layer_tells_a_planted_upward_import():
    assert layer("hcmi/types.py") < layer("hcmi/model/towers.py") < layer("hcmi/train.py") < layer("hcmi/cli.py")
    assert layer("hcmi/cli.py") < layer("flows/pipeline.py")
    assert imported(ast.parse("def f():\n    from hcmi import train\n")) == {"hcmi.train"}
