"""`hcmi promote` and `hcmi rollback`."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hcmi.config import Params
from hcmi.dataset import read_accepted
from hcmi.errors import ReleaseError
from hcmi.evaluate import OtherRunError, compare_runs, evaluate, read_run
from hcmi.index import SearchIndex
from hcmi.ingest import fill, missing_batches
from hcmi.model import HcmiModel, load_retriever
from hcmi.promote.card import model_card
from hcmi.promote.gate import Difference, decide
from hcmi.promote.lineage import lineage
from hcmi.promote.newest import compare_on_newest, test_ids
from hcmi.promote.tags import tag, tagged_versions
from hcmi.releases import CURRENT, Release, Releases, copy_folder
from hcmi.runtime import pick_device
from hcmi.shards import ShardReader, read_splits, same_settings, temporary_shards
from hcmi.wording import plural

AGAIN = "Run `dvc repro`, then `hcmi promote` again."
TEST = "test"
MEASURED_ON = ("split", "split_sha256", "videos_sha256")       # in evaluate.json


class _RefusedError(Exception):
    """Ends the block that makes a release, so that nothing is left of it."""


def promote(*, model_dir: str | Path, export_dir: str | Path, metrics: str | Path, plots_dir: str | Path,
            shards_dir: str | Path, releases_dir: str | Path, accepted: str | Path, incoming_dir: str | Path,
            params: Params, must_be_better: bool = True, again: bool = False) -> dict[str, Any]:
    """Make a release of the trained model and serve it, if it is not worse than the one that is served.

    Returns the decision: `decision` (promoted, refused or unchanged), `version`, `replaces`, `why`, and the figures
    `test` and `batches`; and `tags`, what became of the git tags of the served release. The first release is compared
    with nothing. Accepted batches that the export does not hold are added to the release's index before it is served.
    `again` promotes a model that has been rolled back.

    After a crash at any time the old release or the new one is served, and the next call ends in the same state.
    Raises: ReleaseError when model, export and figures are missing or do not belong together, or there are releases of
    which none is served; and the errors of loading, comparing and encoding.
    """
    workspace = {"model": Path(model_dir), "export": Path(export_dir), "plots": Path(plots_dir),
                 "metrics": Path(metrics)}
    releases = Releases(releases_dir)
    with releases.lock():
        key = _key(workspace)
        champion = _champion(releases, key)
        found = _settle(releases, champion, key, again) or _make(
            releases, champion, workspace, shards_dir=Path(shards_dir), accepted=accepted, incoming_dir=incoming_dir,
            params=params, must_be_better=must_be_better)
        return _with_tags(releases, found)


def _champion(releases: Releases, key: str) -> Release | None:
    """The release that is served; None before the first one is.

    Releases without a link, such as copies that lost theirs, are no reason to serve a model that was compared with
    nothing. The one exception is a first release of these very files: the process that made it ended before it was
    served.
    Raises: ReleaseError.
    """
    champion, known = releases.current(), releases.all()
    if champion is None and known and [release.record["key"] for release in known] != [key]:
        names = ", ".join(release.version for release in known)
        raise ReleaseError(f"{releases.root / CURRENT}: need a link to the served release, got none, although there "
                           f"{'are' if known[1:] else 'is'} {names}. Run `hcmi rollback VERSION`, then `hcmi promote` "
                           "again.")
    return champion


def _make(releases: Releases, champion: Release | None, workspace: dict[str, Path], *, shards_dir: Path,
          accepted: str | Path, incoming_dir: str | Path, params: Params, must_be_better: bool) -> dict[str, Any]:
    """Make a release of the workspace and serve it, or leave nothing of it. Returns the decision."""
    version = releases.next_version(tagged_versions())
    try:
        with releases.add(version) as staged:
            for name in ("model", "export", "plots"):
                copy_folder(workspace[name], staged.folder / name)
            _copy_figures(workspace["metrics"], staged.folder / "metrics")
            # before batches join the index; and of the copy, because the workspace may have changed since
            key = _key({"export": staged.export})
            _copy_test_shards(shards_dir, staged.shards)
            model = _check(staged, shards_dir)
            decision = _compare(champion, staged, model, accepted=accepted, incoming_dir=incoming_dir,
                                shards_dir=shards_dir, params=params, must_be_better=must_be_better)
            if decision["decision"] == "refused":
                raise _RefusedError
            added = fill(staged, missing_batches(staged, accepted), incoming_dir=incoming_dir, params=params,
                         model=model)
            _describe(staged, version, key, decision, champion, model, added)
    except _RefusedError:
        releases.log(**decision)
        return decision
    return _serve(releases, version, decision)


def _with_tags(releases: Releases, found: dict[str, Any]) -> dict[str, Any]:
    served = releases.current()
    return {**found, "tags": None if served is None else tag(served)}


def _serve(releases: Releases, version: str, decision: dict[str, Any]) -> dict[str, Any]:
    releases.serve(version)
    found = {**decision, "version": version}
    releases.log(**found)
    return found


def _settle(releases: Releases, champion: Release | None, key: str, again: bool) -> dict[str, Any] | None:
    """The decision when there is a release of these very files already; None when there is none."""
    same = next((release for release in reversed(releases.all()) if release.record["key"] == key), None)
    if same is None:
        return None
    served = None if champion is None else champion.version
    decision = {"version": same.version, "replaces": served, "test": None, "batches": None}
    if served == same.version:
        return {**decision, "decision": "unchanged", "why": f"{same.version} is served already."}
    if same.withdrawn is None and same.record["replaces"] == served:
        # it passed the gate, and the process ended before it was served
        return _serve(releases, same.version, {**decision, "decision": "promoted", "why": same.record["why"]})
    if again:
        releases.reinstate(same)
        return _serve(releases, same.version, {**decision, "decision": "promoted", "why": "Asked for again."})
    said = "was rolled back" if same.withdrawn else f"has been replaced by {served}"
    return {**decision, "decision": "refused",
            "why": f"{same.version} has this model and {said}. `hcmi promote --again` serves it all the same."}


def _key(workspace: dict[str, Path]) -> str:
    """What makes a release the same release: the model and the export."""
    digest = hashlib.sha256()
    for path in (workspace["export"] / "meta.json", workspace["export"] / "index" / "index.json"):
        try:
            digest.update(path.read_bytes())
        except OSError as error:
            raise ReleaseError(f"{path}: need a finished export to release, got none. {AGAIN}") from error
    return digest.hexdigest()


def _copy_figures(source: Path, target: Path) -> None:
    """The file of figures, whatever its name is, and the curves of training beside it.

    What else lies there, such as the figures of other models, is no part of the release.
    """
    target.mkdir()
    try:
        shutil.copyfile(source, target / "evaluate.json")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ReleaseError(f"{source}: need the file of the model's figures, got none. {AGAIN}") from error
    curves = source.parent / "train"
    if (curves / "metrics.json").is_file():
        copy_folder(curves, target / "train")


def _copy_test_shards(source: Path, target: Path) -> None:
    """What judging a batch reads of the shards: the test clips' frames, and the settings. It needs no other shard."""
    target.mkdir()
    try:
        for path in [source / "index.parquet", source / "stats.json", *sorted(source.glob("test-*.tar"))]:
            shutil.copyfile(path, target / path.name)
    except FileNotFoundError as error:
        raise ReleaseError(f"{source}: need the shards of the model, got no {Path(error.filename).name}. {AGAIN}"
                           ) from error


def _check(staged: Release, shards_dir: Path) -> HcmiModel:
    """The model of a copy whose parts belong together. Raises: ReleaseError."""
    model = load_retriever(staged.model, pick_device("auto"))
    SearchIndex.open(staged.index, load=True).check_model(model.fingerprint)
    splits = read_splits(staged.shards)
    missing = set(test_ids(staged)) - set(splits[TEST].video_ids if TEST in splits else ())
    if missing:
        raise ReleaseError(f"{shards_dir}: need the test clips of the export, got shards of another run, without "
                           f"{min(missing)}. {AGAIN}")
    try:
        _, card, _ = read_run(staged.folder / "metrics" / "evaluate.json", staged.folder / "plots")
        measured = card["model"]["fingerprint"]
    except OtherRunError as error:
        raise ReleaseError(f"metrics/ and plots/: need the figures of one run, got {error}. {AGAIN}") from error
    except (OSError, ValueError, KeyError) as error:
        raise ReleaseError(f"metrics/ and plots/: need the figures of the model, got none that can be read. {AGAIN}"
                           ) from error
    if measured != model.fingerprint:
        raise ReleaseError(f"metrics/ and plots/: need the figures of this model ({model.fingerprint[:12]}), got those "
                           f"of {measured[:12]}. {AGAIN}")
    return model


def _compare(champion: Release | None, staged: Release, model: HcmiModel, *, accepted: str | Path,
             incoming_dir: str | Path, shards_dir: str | Path, params: Params, must_be_better: bool) -> dict[str, Any]:
    """The decision, with the figures behind it."""
    decision: dict[str, Any] = {"version": None, "replaces": None if champion is None else champion.version,
                                "test": None, "batches": None}
    if champion is None:
        return {**decision, "decision": "promoted", "why": "The first release: there is nothing to compare it with."}
    served = load_retriever(champion.model, pick_device("auto"))
    test = _on_test(champion, staged, shards_dir, params)
    batches = compare_on_newest([(served, champion), (model, staged)], read_accepted(accepted),
                                incoming_dir=incoming_dir, params=params,
                                samples=params.evaluate.bootstrap_samples)
    # the same model over another index cannot be better
    passed, why = decide(test, batches, params.promote.margin,
                         must_be_better and served.fingerprint != model.fingerprint)
    return {**decision, "decision": "promoted" if passed else "refused", "why": why, "test": test.to_record(),
            "batches": batches and batches.to_record()}


def _on_test(champion: Release, staged: Release, shards_dir: str | Path, params: Params) -> Difference:
    """R@1 on the challenger's test set, on which the champion is measured again if it was measured on another one, or
    on other videos, or has the figures of another run. Frames are made as its own are.
    """
    reports = [json.loads((release.folder / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
               for release in (champion, staged)]
    with tempfile.TemporaryDirectory(prefix="hcmi-promote-") as work:
        measured = champion.folder
        same = len({tuple(map(report["protocol"].get, MEASURED_ON)) for report in reports}) == 1
        if not (same and _has_its_figures(champion)):
            measured = Path(work)
            with _test_shards(champion, shards_dir, params) as shards:
                evaluate(model_dir=champion.model, shards_dir=shards, out_json=measured / "metrics" / "evaluate.json",
                         plots_dir=measured / "plots", params=params)
        found = compare_runs(measured, staged.folder, params.evaluate.bootstrap_samples)
    row = found["differences"]["t2v"]["R@1"]
    low, high = row["ci95"]
    return Difference("test set", row["a"], row["b"], low, high, reports[1]["raw"]["t2v"]["n"])


def _has_its_figures(release: Release) -> bool:
    """Whether its figures and its ranks can be read and are of one run: earlier versions took others with `--metrics`.
    """
    try:
        read_run(release.folder / "metrics" / "evaluate.json", release.folder / "plots")
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _test_shards(champion: Release, shards_dir: str | Path, params: Params) -> Iterator[Path]:
    """Shards of the challenger's test set for the champion, whose frames may have another size.

    Raises: ReleaseError when they have to be made and a clip cannot be decoded.
    """
    if same_settings(shards_dir, champion.shards):
        yield Path(shards_dir)
        return
    clips = sorted(ShardReader(shards_dir, params.evaluate.split).clips, key=lambda clip: clip.video_id)
    with temporary_shards(clips, champion.shards, params) as (shards, lost):
        if lost or shards is None:
            raise ReleaseError(f"{champion.version}: need the test clips with its own frames to compare it, got "
                               f"{plural(len(lost), 'clip')} that cannot be decoded. The first: {lost[0].detail}")
        yield shards


def _describe(staged: Release, version: str, key: str, decision: dict[str, Any], champion: Release | None,
              model: HcmiModel, added: dict[str, int]) -> None:
    """Write release.json, the model card, and copies of the files that say how the model was made."""
    for name in ("params.yaml", "dvc.lock"):
        if Path(name).is_file():
            shutil.copyfile(name, staged.folder / name)
    report = json.loads((staged.folder / "metrics" / "evaluate.json").read_text(encoding="utf-8"))
    record = lineage(staged.folder) | {
        "key": key, "replaces": None if champion is None else champion.version, "why": decision["why"],
        "model": {"fingerprint": model.fingerprint, "head": model.config.head, "backbone": model.config.backbone},
        "videos": len(SearchIndex.open(staged.index)), "batches_added": added,
        "figures": {name: {f"R@{k}": report["raw"][name][f"R@{k}"] for k in (1, 5, 10)} for name in ("t2v", "v2t")},
        "compared": {name: decision[name] for name in ("test", "batches")}}
    (staged.folder / "release.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (staged.model / "README.md").write_text(model_card(version, record, report), encoding="utf-8")


def rollback(*, releases_dir: str | Path, version: str | None = None) -> dict[str, Any]:
    """Serve an earlier release again: `version`, or the one that the served release replaced.

    The release that is left is marked, so that its model is not promoted again by itself.
    Raises: ReleaseError when there is no such release.
    """
    releases = Releases(releases_dir)
    with releases.lock():
        left = releases.current()
        if version is None:
            if left is None or left.record["replaces"] is None:
                raise ReleaseError(f"{releases.root}: need a release before the served one, got none. "
                                   "`hcmi releases` lists them.")
            version = left.record["replaces"]
        target = releases.get(version)
        decision = {"decision": "rolled back", "version": target.version,
                    "replaces": None if left is None else left.version}
        if left is not None and left.version == target.version:
            return _with_tags(releases, {**decision, "decision": "unchanged",
                                         "why": f"{target.version} is served already."})
        why = f"Rolled back to {target.version}."
        if left is not None:
            releases.withdraw(left, why)
        releases.serve(target.version)
        releases.reinstate(target)
        found = {**decision, "why": why}
        releases.log(**found)
        return _with_tags(releases, found)


def decision_text(found: dict[str, Any]) -> str:
    """`promoted v2, which replaces v1: ...`, and a line about the git tags of what is served."""
    version = f" {found['version']}" if found["version"] else ""
    before = f", which replaces {found['replaces']}" if found["decision"] == "promoted" and found["replaces"] else ""
    tags = f"\nserved: {found['tags']}" if found["tags"] else ""
    return f"{found['decision']}{version}{before}: {found['why']}{tags}"
