"""What follows from a verdict of the drift report: the state in which a flow ends, and what is done with the batch."""

import shlex
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from hcmi.errors import shown


class Verdict(NamedTuple):
    """What the report says about a batch: one of `ACTIONS`, and why, with R@1 where it is known."""

    word: str
    why: str
    final: bool = True      # False: the machine was in trouble, not the batch, which is to be judged again
    is_query_log: bool = False

    @classmethod
    def of(cls, report: dict[str, Any], batch: str) -> "Verdict":
        """The verdict on `batch` in the content of a report.json, which has its name as `shown`."""
        record = next(record for record in report["batches"] if record["batch"] == shown(batch))
        return cls(record["verdict"], record["why"], record["reason"] != "machine",
                   record.get("is_query_log", bool(record.get("queries"))))      # earlier reports have the number only

    @property
    def action(self) -> "Action":
        """What follows from it."""
        row = action(self.word)
        return replace(row, **REPORTED) if self.is_query_log else row


@dataclass(frozen=True)
class Action:
    """`search`: its clips join the served index. `train`: they are training data from the next run of the pipeline on.
    `retrain`: that run is started now. `state`: the name that a flow run ends with; None: it fails. `todo`: what a
    person may do, with `{batch}` for the name.
    """

    state: str | None
    said: str
    todo: str = ""
    search: bool = False
    train: bool = False
    retrain: bool = False

    def todo_for(self, batch: str) -> str:
        """What a person may do about this batch: its commands can be pasted into a shell."""
        return self.todo.format(batch=shlex.quote(batch))


# The one table. Later rows are worse: a run ends with the state of its worst batch.
ACTIONS = {
    "ok": Action("Completed", "added to the served index and to the training data", search=True, train=True),
    "changed": Action("Changed", "looks different, and search finds it as well as before: added to the served index "
                                 "and to the training data", search=True, train=True),
    "cannot tell": Action("CannotTell", "not added", "Its report says what is missing. Put more clips into the batch, "
                          "or add it all the same: `hcmi add --batch {batch}`."),
    "search hurt": Action("SearchHurt", "not added to the served index, because search finds it worse; its captioned "
                                        "clips are training data for a model that may replace this one",
                          "Its report shows what is different. If the batch has no captions, write some: the next "
                          "training run learns from them.", train=True, retrain=True),
}
NO_REPORT = Action(None, "not added: there is no report on it", "Correct what the reason says, or take the batch away. "
                   "The next run judges it again.")


# Of a query log, whatever its verdict, in place of what the table says.
REPORTED: dict[str, Any] = {"said": "none of it is searched or trained on: it is a query log", "todo": "",
                            "search": False, "train": False, "retrain": False}


def action(verdict: str) -> Action:
    """What follows from this verdict; nothing where there is none."""
    return ACTIONS.get(verdict, NO_REPORT)


def worst(states: list[str]) -> str:
    """The state of the worst batch; Completed when there is none."""
    order = [row.state for row in ACTIONS.values()]
    return max(["Completed", *states], key=order.index)
