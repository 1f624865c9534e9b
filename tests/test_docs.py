"""The documents are held to the code: commands, options, targets, paths, links, help texts, the table of stages."""

import ast
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from import_graph import ROOT, exports, module_file, statements
from ruamel.yaml import YAML

from hcmi.cli import main as hcmi
from hcmi.dataset import SOURCES

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks/README.md",
         *sorted(page for pattern in ("docs/**/*.md", "data/*.md", "data/*/README.md") for page in ROOT.glob(pattern))]
DVC_VERBS = {"repro", "status", "metrics", "plots", "params", "exp", "remote", "push", "pull", "add"}
PROGRAMS = {"make", "hcmi", "dvc", "python", "prefect", "ray", "pip", "git", "curl", "$EDITOR", "source", "export",
            "cd", "mkdir", "cp", "ls", "cat", "head", "torchrun", "docker", "sed"}


def shell_lines(text: str) -> list[str]:
    """Commands in the ```sh blocks, comments and continued lines resolved."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


COMMANDS = [(str(page.relative_to(ROOT)), line) for page in PAGES for line in shell_lines(page.read_text("utf-8"))]


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def check_command(line: str) -> None:
    """Raises AssertionError or click's usage error when the line could not run as it stands."""
    words = [word for word in shlex.split(line, comments=True) if not re.match(r"^[A-Z_]+=", word)]
    program, rest = words[0], words[1:]
    assert program in PROGRAMS, f"unknown program {program}"
    if program == "make":
        assert {word for word in rest if "=" not in word} <= targets()
    elif program == "hcmi":
        assert rest[0] in hcmi.commands
        hcmi.commands[rest[0]].make_context(rest[0], rest[1:])
    elif program == "dvc":
        assert rest[0] in DVC_VERBS
        known = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text("utf-8"))
        for option, value in itertools.pairwise(rest):
            if option == "-S":
                section = known
                for part in value.partition("=")[0].split("."):
                    section = section[part]
    elif program == "python" and rest[0] == "-m":
        assert rest[1] in sys.stdlib_module_names or module_file(rest[1])
    elif program == "python":
        assert (ROOT / rest[0]).is_file()


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{page}: {line}" for page, line in COMMANDS])
def test_command_exists_when_a_page_shows_it(page, line):
    check_command(line)


@pytest.mark.parametrize("line", ["make repor", "hcmi serach x", "hcmi search x --topp 5", "dvc exp run -S train.rl=1",
                                  "python -m flows.pipline", "frobnicate"])
def test_check_command_fails_when_the_command_is_wrong(line):
    with pytest.raises((AssertionError, click.UsageError, KeyError)):
        check_command(line)


def test_readme_starts_with_a_search_and_then_the_two_commands():
    lines = shell_lines((ROOT / "README.md").read_text("utf-8"))
    assert lines[2].startswith("hcmi search ")
    assert lines[3:5] == ["make repro", "make test"]


def snippets(page: Path) -> list[str]:
    """The Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def check_imports(snippet: str) -> None:
    """Raises AssertionError when it imports from hcmi what the package or one of its rooms does not export."""
    for item in statements(ast.parse(snippet)):
        if isinstance(item, ast.ImportFrom) and (item.module or "").partition(".")[0] == "hcmi":
            known = {"Encoder", "Retriever"} if item.module == "hcmi" else set(exports(item.module))
            assert {alias.name for alias in item.names} <= known, f"{ast.unparse(item)}: need names that are exported"


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_snippets_import_what_is_exported(page):
    for snippet in snippets(page):
        check_imports(snippet)


def test_check_imports_fails_when_a_name_is_not_exported():
    check_imports("from hcmi import Retriever\nimport numpy")
    with pytest.raises(AssertionError):
        check_imports("from hcmi.scenes import write_galery")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if not re.match(r"[a-z]+:", link):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text("utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages == {name for name in pages if f"]({name})" in index}


def test_every_published_data_set_is_described():
    page = (ROOT / "docs/datasets.md").read_text("utf-8")
    assert {name for name in SOURCES if f"](#{name})" not in page or f"\n### `{name}`\n" not in page} == set()


def test_every_benchmark_is_described():
    page = (ROOT / "benchmarks/README.md").read_text("utf-8")
    assert {path.stem for path in ROOT.glob("benchmarks/*.py") if f"`{path.stem}`" not in page} == set()


def test_cli_page_is_the_help_texts():
    # in a process of its own: click keeps the help option of whichever context asked first
    page = subprocess.run([sys.executable, "-c", "import generate; print(generate.cli_page(), end='')"], text=True,
                          cwd=ROOT / "docs", check=True, capture_output=True).stdout
    assert (ROOT / "docs/cli.md").read_text("utf-8") == page, "run `make docs`"


def test_table_of_stages_is_dvc_yamls():
    assert (ROOT / "docs/pipeline.md").read_text("utf-8") == generator().pipeline_page(), "run `make docs`"


@pytest.mark.parametrize("name", hcmi.commands)
def test_help_has_an_example_and_json_where_a_program_may_read_it(name):
    text = hcmi.commands[name].get_help(click.Context(hcmi.commands[name], info_name=f"hcmi {name}"))
    assert re.search(rf"Examples?:\s+hcmi {name}", text)


def test_make_help_lists_every_target():
    phony = re.search(r"^\.PHONY: (.*)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE).group(1).split()
    assert set(phony) == targets()
