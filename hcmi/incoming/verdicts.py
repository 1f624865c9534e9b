"""What follows from a verdict of the drift report: the state in which a flow ends, and what is done with the batch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Action:
    """`search`: its clips join the served index. `train`: they are training data from the next run of the pipeline on.
    `retrain`: that run is started now. `state`: the name that a flow run ends with; None: it fails.
    """

    state: str | None
    said: str
    search: bool = False
    train: bool = False
    retrain: bool = False


# The one table. Later rows are worse: a run ends with the state of its worst batch.
ACTIONS = {
    "ok": Action("Completed", "added to the served index and to the training data", search=True, train=True),
    "changed": Action("Changed", "looks different, and search finds it as well as before: added to the served index "
                                 "and to the training data", search=True, train=True),
    "cannot tell": Action("CannotTell", "not added: too little to judge by. `hcmi add --batch` adds it all the same"),
    "search hurt": Action("SearchHurt", "not added to the served index, because search finds it worse; its captioned "
                                        "clips are training data for a model that may replace this one",
                          train=True, retrain=True),
}
# Verdicts of reports that were made before these four.
ACTIONS = {**ACTIONS, "too small to judge": Action("TooSmall", ACTIONS["cannot tell"].said),
           "drift": Action("Drifted", ACTIONS["search hurt"].said, train=True, retrain=True)}
UNKNOWN = Action(None, "not added: the report could not read it")


def action(verdict: str) -> Action:
    """What follows from this verdict; nothing from one that the table does not know, such as `unreadable`."""
    return ACTIONS.get(verdict, UNKNOWN)


def worst(states: list[str]) -> str:
    """The state of the worst batch; Completed when there is none."""
    order = ["Completed", "Changed", "TooSmall", "CannotTell", "Drifted", "SearchHurt"]
    return max(["Completed", *states], key=order.index)
