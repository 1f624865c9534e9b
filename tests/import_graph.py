"""Who imports whom, read from the source text: shared by the tests of dvc.yaml and of the import direction."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def module_file(module: str) -> Path | None:
    """The file of a module of this project, or None for anybody else's."""
    base = ROOT.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def imported(node: ast.AST) -> set[str]:
    """Dotted names of all that is imported anywhere below `node`, within functions too.

    `from a import b` counts as `a.b` where that is a module of this project and as `a` otherwise.
    Imports that only a type checker sees are left out.
    """
    found: set[str] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, ast.If) and ast.unparse(item.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(item, ast.Import):
            found |= {alias.name for alias in item.names}
        elif isinstance(item, ast.ImportFrom):
            assert item.module, "this project imports by full names"
            for alias in item.names:
                name = f"{item.module}.{alias.name}"
                found.add(name if module_file(name) else item.module)
        stack.extend(ast.iter_child_nodes(item))
    return found


def closure(modules: set[str]) -> set[Path]:
    """Files of this project that importing `modules` may run: they, what they import, and their packages' __init__.

    Left out are hcmi/__init__.py, which holds the version and a shortcut, and empty __init__ files.
    """
    files: set[Path] = set()
    stack = list(modules)
    while stack:
        module = stack.pop()
        path = module_file(module)
        if path is None or path in files or path == ROOT / "hcmi/__init__.py":
            continue
        files.add(path)
        stack.extend(imported(ast.parse(path.read_text(encoding="utf-8"))))
        stack.append(module.rpartition(".")[0])
    return {path for path in files if path.name != "__init__.py" or _has_code(path)}


def _has_code(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return any(not isinstance(item, ast.Expr) for item in body)
