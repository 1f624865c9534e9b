"""What a run did, as an artifact on its page in Prefect."""

import re
from collections.abc import Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from hcmi.errors import shown

# `train: 120 of 500 steps, ...`, `epoch 3 of 8: ...`
HOW_FAR = re.compile(r"(?:epoch|[\w ]+:) (\d+) of ([1-9]\d*)\b")


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
                     for line in lines)


def show(key: str, title: str, *parts: str) -> None:
    """Put these paragraphs on the page of the run; `key`: lower case letters and dashes, one for each kind of run.

    Bytes of names that are not UTF-8 are escaped: the server does not take them.
    """
    text = "\n\n".join([f"# {title}", *filter(None, parts)])
    create_markdown_artifact(key=key, markdown="\n".join(map(shown, text.split("\n"))), description=title)


def what_now(todo: Sequence[str]) -> str:
    """What a person has to do, as a list; it comes first on a page."""
    if not todo:
        return "**What now?** Nothing has to be done."
    return "\n".join(["**What now?**", "", *(f"- {one}" for one in todo)])


class Progress:
    """A bar on the page of a run, and a description of it, from the lines that a stage prints.

    The bar is made at the first line that says how far the stage is. A server that does not take it ends no stage.
    """

    def __init__(self, stage: str):
        self._stage = stage
        self._bar: Any = None

    def read(self, line: str) -> None:
        """Take note of one line of the stage's output."""
        found = HOW_FAR.match(line)
        if found is None:
            return
        percent = min(100.0, 100 * int(found[1]) / int(found[2]))
        said: Any = {"progress": percent, "description": f"{self._stage}: {line}"}
        try:
            if self._bar is None:
                self._bar = create_progress_artifact(key=re.sub(r"[^a-z0-9]+", "-", f"{self._stage.lower()}-progress"),
                                                     **said)
            else:
                update_progress_artifact(self._bar, **said)
        except Exception as error:  # noqa: BLE001 - the client's, its HTTP library's or the server's own
            get_run_logger().warning("progress of %s is not on the page: %s", self._stage, error)
