"""Which modules a stage uses, read from the source text: the verb's imports, and all that these modules import."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]      # the clone, or site-packages
OWN = ("hcmi", "flows")
ROOMS = frozenset(path.parent.name for path in ROOT.glob("hcmi/*/__init__.py"))


def module_file(module: str) -> Path | None:
    """The file of a module of this project, or None for one of another project."""
    if module.partition(".")[0] not in OWN:
        return None
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def name_in_project(path: Path) -> str:
    """`hcmi/shards/reader.py`, also where the package is installed."""
    return path.relative_to(ROOT).as_posix()


def room_of(module: str) -> str | None:
    """The room that a module of hcmi belongs to; None for the ground, for flows and for anybody else's."""
    parts = module.split(".")
    return parts[1] if parts[0] == "hcmi" and len(parts) > 1 and parts[1] in ROOMS else None


def statements(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """All import statements below `tree`, within functions too; those that only a type checker sees are left out."""
    found: list[ast.Import | ast.ImportFrom] = []
    stack = [tree]
    while stack:
        item = stack.pop()
        if isinstance(item, ast.If) and ast.unparse(item.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(item, (ast.Import, ast.ImportFrom)):
            found.append(item)
        stack.extend(ast.iter_child_nodes(item))
    return found


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of the modules that `tree` imports from.

    A name that a room exports counts as the module which defines it: a room's __init__.py holds nothing else.
    """
    found: set[str] = set()
    for item in statements(tree):
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names}
        else:
            assert item.module, "this project imports by full names"
            found |= {_definer(item.module, alias.name) for alias in item.names}
    return found


def _definer(module: str, name: str) -> str:
    if module_file(f"{module}.{name}"):
        return f"{module}.{name}"
    return exports(module).get(name, module) if room_of(module) and module.count(".") == 1 else module


@cache
def exports(room: str) -> dict[str, str]:
    """Name -> the module that defines it, of all that a room's __init__.py exports."""
    tree = ast.parse((ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    return {alias.asname or alias.name: item.module for item in tree.body if isinstance(item, ast.ImportFrom)
            for alias in item.names if item.module}


def closure(modules: set[str]) -> set[Path]:
    """Files of this project that decide what `modules` do: they and all that they import.

    Left out are __init__.py files: those of rooms only name what others may use, and hcmi's holds the version.
    """
    files: set[Path] = set()
    stack = list(modules)
    while stack:
        path = module_file(stack.pop())
        if path is None or path in files or path.name == "__init__.py":
            continue
        files.add(path)
        stack.extend(_imported_by(path.read_text(encoding="utf-8"), path))
    return files


@cache      # the stages share most of their modules
def _imported_by(text: str, path: Path) -> set[str]:
    return imported(ast.parse(text, path))


def verb(name: str) -> ast.FunctionDef:
    """The function behind `hcmi <name>`. Raises: KeyError when there is none."""
    tree = ast.parse((ROOT / "hcmi/cli.py").read_text(encoding="utf-8"))
    for item in tree.body:
        if isinstance(item, ast.FunctionDef):
            decorators = {ast.unparse(decorator) for decorator in item.decorator_list}
            if f"main.command({name!r})" in decorators or (item.name == name and "main.command()" in decorators):
                return item
    raise KeyError(name)


def verb_imports(name: str) -> set[str]:
    """The project's modules that the verb itself imports."""
    return {module for module in imported(verb(name)) if module_file(module) and module != "hcmi"}


def files_of_stage(stage: str) -> list[Path]:
    """The code of a stage: the modules that it uses, and the files of `static/` folders beside them, sorted."""
    modules = closure(verb_imports(stage))
    folders = {path.parent / "static" for path in modules if (path.parent / "static").is_dir()
               and '"static"' in path.read_text(encoding="utf-8")}
    return sorted(modules | {path for folder in folders for path in folder.rglob("*") if path.is_file()})
