"""Imports point one way, rooms are entered by their door, and each outside library has one owner."""

import ast
import re
import sys
import tomllib
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from import_graph import ROOMS, ROOT, exports, imported, module_file, module_name, room_of, statements

SOURCES = sorted([*ROOT.glob("hcmi/**/*.py"), *ROOT.glob("flows/*.py")])

# Each library that this project installs or may install -> who may import it: rooms, modules of the ground, `flows`.
OWNERS: dict[str, set[str]] = {
    "av": {"video", "scenes"}, "click": {"cli", "cli_served", "options"}, "decord": {"video"}, "dvc": {"flows"},
    "dvclive": {"train"}, "evidently": {"drift"}, "faiss": {"index"}, "fsspec": {"incoming"}, "gto": {"promote"},
    "huggingface_hub": {"model", "promote"},
    "matplotlib": {"evaluate", "train", "search"}, "numpy": {"runtime", *ROOMS}, "pandas": {"evaluate", "drift"},
    "peft": {"train"},
    "PIL": {"video", "drift"}, "prefect": {"flows"}, "psutil": {"flows", "runtime"},
    "pyarrow": {"types", "dataset", "shards", "index", "export", "drift"}, "pydantic": {"config"},
    "mteb": {"search"}, "open_clip": {"model"}, "pymilvus": {"index"},
    "ray": {"video"}, "ruamel": {"config"}, "safetensors": {"model", "train", "encode"},
    "scenedetect": {"video"}, "simplejpeg": {"video", "shards"}, "scipy": {"drift"},
    "sklearn": {"drift"},
    "starlette": {"serve"}, "tokenizers": {"model"}, "tqdm": {"progress"}, "transformers": {"model"},
    "torch": {"types", "ahead", "processes", "ranks", "runtime", "doctor", "shards", "encode", "model", "train",
              "evaluate", "export", "index", "search", "drift"},
    "uvicorn": {"serve"}, "webdataset": {"dataset", "shards"}}
# Comes with CUDA builds of torch; without it there is another way.
WITH_TORCH: dict[str, set[str]] = {"triton": {"model"}}
# Installed but not imported here: pinned for another library's sake, or needed inside one.
FOR_OTHERS = {"asyncpg", "datasets", "dvc-s3", "fastapi", "milvus-lite", "moto", "protobuf", "sentencepiece",
              "sqlalchemy", "torchcodec"}
IMPORT_NAMES = {"faiss-cpu": "faiss", "huggingface-hub": "huggingface_hub", "open_clip_torch": "open_clip",
                 "pillow": "PIL", "ruamel.yaml": "ruamel", "scenedetect-headless": "scenedetect",
                 "scikit-learn": "sklearn"}

# From the ground up. A room imports rooms of the lines before its own and none of its own line, but for ORDERED.
LAYERS = [{"model", "video"}, {"scenes", "dataset", "shards", "encode", "index", "releases", "incoming"},
          {"evaluate", "train", "export", "search", "drift", "doctor", "serve", "ingest", "promote", "project"}]
ORDERED = {("dataset", "scenes"), ("shards", "dataset"), ("encode", "shards"), ("incoming", "dataset"),
           ("incoming", "scenes"), ("train", "evaluate"), ("drift", "evaluate"), ("doctor", "evaluate"),
           ("doctor", "train"), ("doctor", "project"), ("serve", "search"), ("ingest", "drift"),
           ("promote", "evaluate"), ("promote", "ingest")}
COMMAND_LINE = {"cli", "cli_served", "options"}
MAX_LINES = 400


@cache
def tree(path: Path) -> ast.AST:
    return ast.parse(path.read_text(encoding="utf-8"))


def own_names(path: Path) -> set[str]:
    """Modules of this project that a file imports from."""
    return {name for name in imported(tree(path)) if name.partition(".")[0] in ("hcmi", "flows") and name != "hcmi"}


def place(path: Path) -> str:
    """Room, module of the ground, or `flows`."""
    name = module_name(path)
    return room_of(name) or (name.split(".")[0] if name.startswith("flows") else name.split(".")[-1])


def libraries(path: Path) -> set[str]:
    found = {name.partition(".")[0] for name in imported(tree(path))}
    return found - set(sys.stdlib_module_names) - {"hcmi", "flows"}


def listed() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name != "dev")]
    names = {re.match(r"[\w.-]+", line)[0] for group in groups for line in group}
    return {IMPORT_NAMES.get(name, name) for name in names - FOR_OTHERS}


def may_import(importer: str, target: str) -> bool:
    """Whether a room may import another."""
    level = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
    return importer == target or level[target] < level[importer] or (importer, target) in ORDERED


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_every_listed_library_has_an_owner_who_imports_it():
    assert listed() == set(OWNERS)
    users = {library: {place(path) for path in SOURCES if library in libraries(path)} for library in OWNERS}
    assert not [library for library, found in users.items() if not found], "listed, but not imported"


@pytest.mark.parametrize("library", OWNERS | WITH_TORCH)
def test_library_is_imported_by_its_owners_alone(library):
    owners = (OWNERS | WITH_TORCH)[library]
    wrong = [module_name(path) for path in SOURCES if library in libraries(path) and place(path) not in owners]
    assert not wrong, f"{library} belongs to {owners}"


def test_no_library_is_imported_that_is_not_listed():
    assert {name for path in SOURCES for name in libraries(path)} <= set(OWNERS | WITH_TORCH)


@pytest.mark.parametrize("source", SOURCES, ids=module_name)
def test_rooms_are_entered_by_their_door_and_imports_point_down(source):
    own = room_of(module_name(source))
    for item in statements(tree(source)):
        names = [alias.name for alias in item.names] if isinstance(item, ast.Import) else [item.module]
        for name in names:
            room = room_of(name)
            if room is None:
                ground = name.startswith("hcmi.") or name == "hcmi"
                assert not (ground and own) or name.partition(".")[2] not in COMMAND_LINE, \
                    f"{module_name(source)} imports the command line"
                assert not name.startswith("flows") or module_name(source).startswith("flows")
            elif room == own:
                assert name.count(".") > 1, f"{module_name(source)} imports its own room's __init__"
            else:
                assert name == f"hcmi.{room}", f"{name}: need hcmi.{room}, which names what others may use"
                assert own is None or may_import(own, room), f"{module_name(source)} imports {room}, which is above it"


def test_ground_imports_no_room():
    grounds = [path for path in ROOT.glob("hcmi/*.py") if path.stem not in (*COMMAND_LINE, "__main__", "__init__")]
    assert {"ahead", "config", "errors", "files", "processes", "progress", "ranks", "runtime", "types",
            "wording"} == {path.stem for path in grounds}
    assert not [module_name(path) for path in grounds for name in own_names(path) if room_of(name)]


def test_every_room_has_its_place():
    assert set().union(*LAYERS) == ROOMS


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_door_of_a_room_says_what_it_is_for_and_only_names_what_others_may_use(room):
    body = tree(ROOT / f"hcmi/{room}/__init__.py").body
    assert ast.get_docstring(tree(ROOT / f"hcmi/{room}/__init__.py"))
    assert all(isinstance(item, (ast.Expr, ast.ImportFrom)) or ast.unparse(item).startswith("__all__") for item in body)
    assert all(room_of(module) == room for module in exports(f"hcmi.{room}").values())


def test_no_circle():
    graph = {module_name(path): own_names(path) - {module_name(path)} for path in SOURCES if path.name != "__init__.py"}
    assert circle(graph) == []


def test_no_module_is_long():
    lengths = {module_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_tests_mirror_the_rooms():
    folders = {path.parent.name for path in ROOT.glob("tests/*/test_*.py")}
    assert folders == ROOMS | {"flows"}


def test_checks_find_planted_faults():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
    assert not may_import("model", "train")
    assert not may_import("train", "export")
    assert may_import("train", "evaluate")
    assert imported(ast.parse("def f():\n    from hcmi.shards import ShardReader\n    import torch.nn")) == {
        "hcmi.shards.reader", "torch.nn"}
    assert module_file("hcmi.nothing") is None
