"""Releases as git tags, through GTO: the tag `model@v2.0.0` names a commit that can make release v2 again."""

from pathlib import Path

from hcmi.promote.lineage import git
from hcmi.releases import Release

ARTIFACTS = ("model", "index")      # as `artifacts:` of dvc.yaml calls them
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
    names = [f"{artifact}@{release.version}.0.0" for artifact in ARTIFACTS]
    missing = [name for name in names if not git("tag", "--list", name)]
    if missing and git("rev-parse", "--verify", "HEAD:dvc.lock") != git("hash-object", "--no-filters", str(lock)):
        if not DVC_LOCK.is_file() or DVC_LOCK.read_bytes() != lock.read_bytes():
            return "no git tag, because a later run has replaced its dvc.lock before that was committed."
        return "no git tag yet. Commit dvc.lock, then run `hcmi promote` again."
    try:
        _write(missing, release)
    except Exception as error:  # noqa: BLE001 - git's, GTO's or scmrepo's own; the release is served all the same
        return f"no git tag: {' '.join(str(error).split())}"
    return f"git tags {', '.join(names)}. `git push --tags` shares them."


def _write(missing: list[str], release: Release) -> None:
    from gto.api import assign, find_versions_in_stage, register  # slow to import, and only needed here

    root, version = Path.cwd(), f"{release.version}.0.0"
    for name in missing:
        register(root, name.partition("@")[0], "HEAD", version=version, message=release.record["why"])
    for artifact in ARTIFACTS:
        there = find_versions_in_stage(root, artifact, SERVED)
        if version not in [one.version for one in there or []]:
            assign(root, artifact, SERVED, version=version, force=True)
