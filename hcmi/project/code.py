"""What the code of each stage does, as one small file a stage: `python -m hcmi.project.code train evaluate`.

The stage `code` of dvc.yaml writes these files, and every other stage depends on its own. A file names each module that
the stage uses, with a hash of its syntax tree. So a comment or a docstring makes no stage stale.
"""

import ast
import hashlib
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hcmi.errors import ConfigError, HcmiError, MachineError
from hcmi.files import ask_to_write, atomic_file
from hcmi.project.imports import files_of_stage, name_in_project


def write_code(stages: Sequence[str], folder: str | Path = "code") -> None:
    """Write `folder`/<stage>.txt for each stage.

    Raises: ConfigError when a stage is no verb of hcmi; MachineError when a module is no Python, or the files cannot be
    written. None of them is written then.
    """
    texts = {Path(folder, f"{stage}.txt"): stage_code(stage) for stage in stages}
    ask_to_write(files=texts)
    for path, text in texts.items():
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def stage_code(stage: str) -> str:
    """One line for each file that decides what the stage does: hash and name, as `sha256sum` prints them."""
    try:
        return "".join(f"{content_hash(path.read_bytes(), path)}  {name_in_project(path)}\n"
                       for path in files_of_stage(stage))
    except KeyError as error:
        raise ConfigError(f"stage {stage}: need a verb of hcmi, got none. Name stages such as train.") from error
    except SyntaxError as error:
        raise MachineError(f"{error.filename}:{error.lineno}: need Python, got: {error.msg}. Correct it.") from error


@cache      # the stages share most of their modules
def content_hash(content: bytes, path: Path) -> str:
    """32 hexadecimal digits: of the normal form of a module, of the bytes of any other file."""
    if path.suffix == ".py":
        content = normal_form(ast.parse(content, path)).encode()
    return hashlib.sha256(content).hexdigest()[:32]


def normal_form(item: object) -> str:
    """A syntax tree as text: all that it does, without comments, places in the file, docstrings and other bare strings.

    The text is the same in Python 3.11 to 3.13. `ast.dump` is not, because later versions have more fields, such as
    `type_params`: fields without a value are left out. Nor is `ast.unparse`, which quotes in other ways. Python 3.12.1
    has empty strings at the end of formats in f-strings.
    """
    if isinstance(item, ast.AST):
        fields = ((name, _without_idle_parts(item, value)) for name, value in ast.iter_fields(item))
        texts = (f"{name}={normal_form(value)}" for name, value in fields if value not in (None, []))
        return f"{type(item).__name__}({','.join(texts)})"
    if isinstance(item, list):
        return f"[{','.join(map(normal_form, item))}]"
    return repr(item)


def _without_idle_parts(item: ast.AST, value: object) -> object:
    """The value of a field without the parts that do nothing."""
    if not isinstance(value, list):
        return value
    if isinstance(item, ast.JoinedStr):
        return [part for part in value if not _is_text(part, "")]
    return [part for part in value if not (isinstance(part, ast.Expr) and _is_text(part.value))]


def _is_text(item: object, text: str | None = None) -> bool:
    """Whether an item of the tree is a string; with `text`, that string."""
    return (isinstance(item, ast.Constant) and isinstance(item.value, str)
            and (text is None or item.value == text))


if __name__ == "__main__":
    try:
        write_code(sys.argv[1:] or sys.exit("hcmi.project.code: need the names of stages, got none. Name them."))
    except HcmiError as error:
        sys.exit(f"hcmi: {error}")
