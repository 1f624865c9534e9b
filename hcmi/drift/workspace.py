"""Evidently's own interface over all reports: a workspace with a snapshot of each batch and a dashboard.

`python -m hcmi.drift.workspace` builds it from the folders of reports and opens it; `make drift-ui` does the same. It
is built anew each time, so nothing in it can be out of date.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hcmi.errors import DriftError, HcmiError, shown
from hcmi.files import ask_to_write, atomic_dir, is_passed_over

NAME = "HCMI drift"
ENDING = ".evidently.json"
FOLDERS = ("reports/watch", "reports/drift")
SIGN = "hcmi.txt"       # tells a workspace from a person's folder
# Columns of one panel have distances of one size: those of ranks and words reach a hundred limits.
PANELS = {"What the clips and captions show": ("video_embedding", "classifier", "caption_embedding"),
          "Scores": ("own_score", "margin"), "Ranks and words": ("rank", "unknown_words"),
          "Pictures": ("nearest_known", "duration_s", "brightness", "sharpness", "motion")}
# Evidently cuts longer ones.
LEGENDS = {"video_embedding": "whole clips", "classifier": "a classifier", "caption_embedding": "captions",
           "rank": "mean rank", "unknown_words": "unknown words", "nearest_known": "likeness to known"}


def find_snapshots(folders: Sequence[str | Path]) -> list[tuple[datetime, Path]]:
    """The snapshots in the folders and in the folders one below, with the batches' dates, oldest first.

    The date is the one in the batch's name (2026-11-23), otherwise that of the file. A batch that was judged twice is
    there once: the newest file.
    """
    newest: dict[str, Path] = {}
    for folder in map(Path, folders):
        for path in [*folder.glob("*" + ENDING), *folder.glob("*/*" + ENDING)]:
            if any(map(is_passed_over, path.relative_to(folder).parts)):
                continue        # left by a killed run
            if path.name not in newest or path.stat().st_mtime > newest[path.name].stat().st_mtime:
                newest[path.name] = path
    return sorted(((date_of(path.name, path.stat().st_mtime), path) for path in newest.values()),
                  key=lambda found: (found[0], found[1].name))


def date_of(name: str, seconds: float) -> datetime:
    """The date in a batch's name, otherwise `seconds` since 1970."""
    if found := re.search(r"(\d{4})-?(\d\d)-?(\d\d)", name):
        try:
            year, month, day = map(int, found.groups())
            return datetime(year, month, day, tzinfo=UTC)
        except ValueError:
            pass
    return datetime.fromtimestamp(seconds, UTC)


def build_workspace(folders: Sequence[str | Path], out: str | Path) -> int:
    """Write the workspace to `out`, completely or not at all. Returns the number of batches in it.

    A snapshot that cannot be read, such as one that was cut off, is named and left out.
    Raises: DriftError when no report has a snapshot; ConfigError when `out` has files and is no workspace.
    """
    ask_to_write(folders={out: SIGN})
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("EVIDENTLY_TYPE_PREFIXES", "hcmi.")       # Evidently loads no other classes than its own
    found = _readable(find_snapshots(folders))
    if not found:
        raise DriftError(f"{', '.join(map(str, folders))}: need a drift report of a batch, got none. Run "
                         f"`hcmi drift` or `python -m flows.drift_watch`.")
    from evidently.ui.workspace import Workspace

    with atomic_dir(out) as folder:
        workspace = Workspace.create(str(folder))
        project = workspace.create_project(NAME, "New batches, compared with the clips that the model was tested on")
        for name, snapshot in found:
            workspace.add_run(project.id, snapshot, name=name)
        _add_dashboard(project)
        (folder / SIGN).write_text("Drift reports for Evidently's own interface. `make drift-ui` replaces this "
                                   "folder.\n", encoding="utf-8")
    return len(found)


def _readable(found: Sequence[tuple[datetime, Path]]) -> list[tuple[str, Any]]:
    """The batches' names and their snapshots, with the batches' dates."""
    from evidently.core.report import Snapshot

    import hcmi.drift.evidently_report  # noqa: F401 - its metric and method, which the snapshots name

    snapshots = []
    for date, path in found:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            snapshot = Snapshot.load_dict({**content, "timestamp": date.isoformat()})
        except (OSError, ValueError, KeyError, TypeError):
            print(f"note: {shown(path)}: need a snapshot of Evidently, got none that can be read. It is left out.",
                  file=sys.stderr)
            continue
        snapshots.append((path.name.removesuffix(ENDING), snapshot))
    return snapshots


def _add_dashboard(project: Any) -> None:
    """What a person asks first, then the trends: every line has the same limit of 1."""
    from evidently.sdk.models import PanelMetric
    from evidently.sdk.panels import bar_plot_panel, line_plot_panel, text_panel

    from hcmi.drift.evidently_report import FOUND, METHOD, SHOWN
    from hcmi.drift.summary import COLUMNS

    def distance(name: str) -> PanelMetric:
        label = COLUMNS[name].label
        metric, labels = ("ValueDrift", {"column": label, "method": METHOD}) if name in SHOWN else (
            "DistanceOverLimit", {"label": label})
        return PanelMetric(legend=LEGENDS.get(name, label), metric=metric, metric_labels=labels)

    dashboard = project.dashboard
    dashboard.add_panel(text_panel(
        "New batches", "A point for each batch. Distances are divided by their limits, so 1 is the limit of each line. "
        "Reports, above, holds each batch with its verdict as a tag."), "Overview")
    dashboard.add_panel(line_plot_panel(
        "R@1: share of captions that find their own clip first",
        [PanelMetric(legend="R@1", metric="MeanValue", metric_labels={"column": FOUND})]), "Overview")
    dashboard.add_panel(bar_plot_panel("Clips in the batch", [PanelMetric(legend="clips", metric="RowCount")]),
                        "Overview")
    for title, names in PANELS.items():
        dashboard.add_panel(line_plot_panel(f"{title}: distance over limit", [distance(name) for name in names]), title)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="*", default=FOLDERS, help="folders of reports")
    parser.add_argument("--out", default="reports/workspace", help="folder to write")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--build-only", action="store_true", help="do not open it")
    options = parser.parse_args()
    try:
        count = build_workspace(options.folders, options.out)
    except HcmiError as error:
        sys.exit(f"hcmi.drift.workspace: {error}")
    print(f"{shown(options.out)}: {count} batches")
    if not options.build_only:
        from evidently.ui.service.app import run_local

        print(f"http://127.0.0.1:{options.port}")
        run_local(host="127.0.0.1", port=options.port, workspace=options.out)


if __name__ == "__main__":
    main()
