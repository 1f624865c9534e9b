"""Releases as git tags, through GTO: the tag `model@v2.0.0` names a commit that can make release v2 again."""

import re
from pathlib import Path

from hcmi.promote.lineage import git
from hcmi.releases import Release

ARTIFACTS = ("model", "index")      # as `artifacts:` of dvc.yaml calls them
PREFIX = f"{ARTIFACTS[0]}@"
RELEASED = re.compile(rf"{PREFIX}v[1-9][0-9]*\.0\.0")
DVC_LOCK = Path("dvc.lock")
SERVED = "served"                   # the stage of GTO


def tag(release: Release) -> str | None:
    """Tag HEAD as this release, and this release as the one that is served; called again, it changes nothing.

    Only a commit with the dvc.lock of the release can make the release again, so no other is tagged.
    Returns what was done or must be done first, in one line; None outside a git repository and without a dvc.lock.
    """
    lock = release.folder / "dvc.lock"
    if not lock.is_file() or git("rev-parse", "--show-prefix") != "":      # none, or a folder inside a repository
        return None
    names, its_lock = [f"{artifact}@{release.version}.0.0" for artifact in ARTIFACTS], _hash_of(lock)
    missing = [name for name in names if not git("tag", "--list", name)]
    foreign = [name for name in names if name not in missing and _hash_at(name) != its_lock]
    if foreign:
        return f"no git tag, because {foreign[0]} names another run of the pipeline, such as another machine's."
    if missing and _hash_at("HEAD") != its_lock:
        if not DVC_LOCK.is_file() or DVC_LOCK.read_bytes() != lock.read_bytes():
            return "no git tag, because a later run has replaced its dvc.lock before that was committed."
        return "no git tag yet. Commit dvc.lock, then run `hcmi promote` again."
    if missing and (other := _other_release_at_head(names[0])):     # GTO takes one version of a model a commit
        return f"no git tag yet, because this commit is {other}. Commit again, then run `hcmi promote` again."
    try:
        _write(missing, release)
    except Exception as error:  # noqa: BLE001 - git's, GTO's or scmrepo's own; the release is served all the same
        return f"no git tag: {' '.join(str(error).split())}"
    return f"git tags {', '.join(names)}. `git push --tags` shares them."


def tagged_versions() -> dict[str, bool]:
    """The versions that git tags name, such as v2, and whether the tag's dvc.lock is that of the project now."""
    if git("rev-parse", "--show-prefix") != "":
        return {}
    now = _hash_of(DVC_LOCK) if DVC_LOCK.is_file() else None
    return {name.removeprefix(PREFIX).partition(".")[0]: now is not None and _hash_at(name) == now
            for name in _releases()}


def _other_release_at_head(own: str) -> str | None:
    """The tag of another release on the commit that is checked out."""
    return next((name for name in _releases("--points-at", "HEAD") if name != own), None)


def _releases(*options: str) -> list[str]:
    """The tags of models that were released."""
    names = git("tag", "--list", f"{PREFIX}v*", *options) or ""
    return [name for name in names.splitlines() if RELEASED.fullmatch(name)]


def _hash_of(lock: Path) -> str | None:
    return git("hash-object", "--no-filters", str(lock))


def _hash_at(revision: str) -> str | None:
    return git("rev-parse", "--verify", f"{revision}:dvc.lock")


def _write(missing: list[str], release: Release) -> None:
    from gto.api import assign, find_versions_in_stage, register  # slow to import, and only needed here

    root, version = Path.cwd(), f"{release.version}.0.0"
    for name in missing:
        register(root, name.partition("@")[0], "HEAD", version=version, message=release.record["why"])
    for artifact in ARTIFACTS:
        there = find_versions_in_stage(root, artifact, SERVED)
        if version not in [one.version for one in there or []]:
            assign(root, artifact, SERVED, version=version, force=True)
