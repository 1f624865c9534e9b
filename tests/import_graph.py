"""Who imports whom, for the tests of imports, of dvc.yaml and of the documents: by the rule of the stage `code`."""

from pathlib import Path

from hcmi.project.imports import (
    ROOMS,
    ROOT,
    closure,
    exports,
    files_of_stage,
    imported,
    module_file,
    room_of,
    statements,
    verb,
    verb_imports,
)

__all__ = ["ROOMS", "ROOT", "closure", "exports", "files_of_stage", "imported", "module_file", "module_name", "room_of",
           "statements", "verb", "verb_imports"]


def module_name(path: Path) -> str:
    """`hcmi.shards.reader` for hcmi/shards/reader.py, `hcmi.shards` for its __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
