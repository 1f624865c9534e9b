"""The folder `releases/`:

    current -> v2                   a link, replaced in one system call
    v1/, v2/                        one release each, complete from the moment that it is there
        model/                          a folder for Hugging Face, with the model card README.md
        export/ plots/
        metrics/evaluate.json           and metrics/train/ where `hcmi train` wrote it beside that file
        shards/                     of the test split alone: what new batches are compared with
        params.yaml, dvc.lock       copies, where the project has them
        release.json                where it comes from: data, code, the model, and why it was promoted
        batches.json                the accepted batches that have been added to its index
        withdrawn.json              only where it has been rolled back
    decisions.jsonl                 one line for each promotion, refusal and rollback
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from hcmi.errors import ReleaseError, shown
from hcmi.files import ask_to_write, is_locked, lock, rename_new, temporary_dir, write_json, writing
from hcmi.progress import note

ROOT = "releases"
CURRENT = "current"
DECISIONS = "decisions.jsonl"
VERSION = re.compile(r"v([1-9][0-9]*)")
NOT_SERVED = shutil.ignore_patterns(".*", "embeddings.parquet")     # temporary files; the tokens for Ray and Spark


@dataclass(frozen=True)
class Release:
    """One release; `folder` may also be the link `current`, through which a reader follows promotions."""

    folder: Path

    @property
    def version(self) -> str:
        return os.path.basename(os.path.realpath(self.folder))

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def export(self) -> Path:
        return self.folder / "export"

    @property
    def index(self) -> Path:
        return self.folder / "export" / "index"

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @cached_property
    def record(self) -> dict[str, Any]:
        """What release.json says. Raises: ReleaseError when it is missing or broken."""
        return _read(self.folder / "release.json")

    @property
    def withdrawn(self) -> dict[str, Any] | None:
        """When and why it was rolled back; None if it was not."""
        path = self.folder / "withdrawn.json"
        return _read(path) if path.exists() else None

    @property
    def batches(self) -> list[str]:
        """The contents of the accepted batches that have been added to its index."""
        path = self.folder / "batches.json"
        return _read(path) if path.exists() else []

    def note_batch(self, content: str) -> None:
        """Remember that the index holds the batch with this content."""
        if content not in self.batches:
            write_json(self.folder / "batches.json", [*self.batches, content])


class Releases:
    """All releases of a project. Writers hold `lock()`; readers need none."""

    def __init__(self, root: str | Path = ROOT):
        self.root = Path(root)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a release is added, changed or chosen: one writer at a time. A wait is said on stderr.

        Raises: MachineError.
        """
        ask_to_write(files=[self.root / DECISIONS])
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if is_locked(self.root / ".lock"):
                note(f"{shown(self.root)}: another command adds or serves a release; waiting for its end")
            with lock(self.root / ".lock"):
                yield

    def all(self) -> list[Release]:
        """Every release, oldest first."""
        found = [path for path in self.root.iterdir() if VERSION.fullmatch(path.name)] if self.root.is_dir() else []
        return [Release(path) for path in sorted(found, key=lambda path: int(path.name[1:]))]

    def current(self) -> Release | None:
        """The release that is served, by its own folder: it stays the same after the next promotion.

        None where there is no link. Raises: ReleaseError when it leads to no release, or is no link.
        """
        try:
            name = os.readlink(self.root / CURRENT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ReleaseError(f"{self.root / CURRENT}: need a link to a release, got a file or folder. Move it away "
                               "and run `hcmi rollback VERSION`.") from error
        if not self._is_release(name):
            raise ReleaseError(f"{self.root / CURRENT}: need a link to a release, got one to {name!r}. Delete it and "
                               "run `hcmi rollback VERSION`.")
        return self.get(name)

    def how_to_serve(self) -> str:
        """What to run where none is served."""
        return "Run `hcmi rollback VERSION`." if self.all() else "Run `hcmi promote`."

    def _is_release(self, name: str) -> bool:
        return VERSION.fullmatch(name) is not None and (self.root / name).is_dir()

    def get(self, version: str) -> Release:
        """Raises: ReleaseError when there is no such release."""
        if not self._is_release(version):
            known = ", ".join(release.version for release in self.all()) or "none"
            raise ReleaseError(f"{self.root}: need a release called {version!r}, got {known}. `hcmi releases` lists "
                               "them.")
        return Release(self.root / version)

    def next_version(self, tagged: Mapping[str, bool]) -> str:
        """The version that the next release gets; it stays the same while `lock()` is held.

        `tagged`: the versions that git knows, also those of other machines, and whether each is what is released now.
        Such a one keeps its version; no other version is used again.
        """
        known = {release.version for release in self.all()}
        same = [version for version, is_same in tagged.items() if is_same and version not in known]
        numbers = [int(version[1:]) for version in same or [*known, *tagged]]
        return f"v{max(numbers, default=0) + (not same)}"

    @contextmanager
    def add(self, version: str) -> Iterator[Release]:
        """A new release, empty at first. It is there, and complete, when the block ends without an error.

        Raises: MachineError when it cannot be written, or when a folder has been put there meanwhile, which stays.
        """
        with temporary_dir(self.root / version) as folder:
            yield Release(folder)
            rename_new(folder, self.root / version)

    def serve(self, version: str) -> Release:
        """Let `current` point at this release: one system call, so a reader finds the old release or this one."""
        release = self.get(version)
        link = self.root / f".{CURRENT}.{os.getpid()}.tmp"
        with writing(self.root / CURRENT):
            link.unlink(missing_ok=True)
            link.symlink_to(version)
            link.replace(self.root / CURRENT)
        return release

    def withdraw(self, release: Release, why: str) -> None:
        """Mark a release, so that the same model is not promoted again by itself."""
        write_json(release.folder / "withdrawn.json", {"when": now(), "why": why})

    def reinstate(self, release: Release) -> None:
        """Undo `withdraw`."""
        (release.folder / "withdrawn.json").unlink(missing_ok=True)

    def log(self, **decision: Any) -> None:
        """Append a line to decisions.jsonl."""
        self.root.mkdir(parents=True, exist_ok=True)
        with writing(self.root / DECISIONS), open(self.root / DECISIONS, "a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"when": now(), **decision}, ensure_ascii=False) + "\n")

    def table(self) -> list[dict[str, Any]]:
        """For people and programs: one row a release, oldest first."""
        current = self.current()
        return [{"version": release.version, "made": release.record["made"],
                 "current": current is not None and release.version == current.version,
                 "withdrawn": release.withdrawn, "figures": release.record["figures"],
                 "videos": release.record["videos"], "batches": len(release.batches),
                 "model": release.record["model"]["fingerprint"], "code": release.record["code"],
                 "replaces": release.record["replaces"], "why": release.record["why"]} for release in self.all()]


def served_paths(root: str | Path = ROOT) -> tuple[str, str] | None:
    """Model folder and index of the current release, through its link; None where there is no release."""
    link = Path(root) / CURRENT
    if not link.is_symlink():
        return None
    return str(Release(link).model), str(Release(link).index)


def releases_text(table: list[dict[str, Any]]) -> str:
    """A table for people, the newest release first."""
    if not table:
        return "No release yet. `hcmi promote` makes one of the trained model."
    lines = [f"{'':2}{'version':9}{'made':22}{'R@1':>6}{'R@10':>6}{'videos':>8}{'batches':>9}  model         why"]
    for row in reversed(table):
        mark = "* " if row["current"] else "  "
        figures = row["figures"]["t2v"]
        why = " ".join(filter(None, [row["why"], (row["withdrawn"] or {}).get("why")]))
        lines.append(f"{mark}{row['version']:9}{row['made'][:19]:22}{figures['R@1']:6.1f}{figures['R@10']:6.1f}"
                     f"{row['videos']:8}{row['batches']:9}  {row['model'][:12]}  {why}")
    return "\n".join([*lines, "* is served; R@1 and R@10 in per cent, text to video, test set; videos when it was "
                      "made, and batches that have joined it."])


def copy_folder(source: Path, target: Path) -> None:
    """A copy that shares no file with its source, because a release must outlive whatever overwrites the source."""
    shutil.copytree(source, target, ignore=NOT_SERVED)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{path}: need a complete release, got none that can be read. Run `hcmi rollback VERSION` "
                           "to serve another one, then delete this one.") from error
