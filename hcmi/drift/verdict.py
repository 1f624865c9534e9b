"""The four ends of a batch, and what a good colleague would say about each. Pure."""

from collections.abc import Sequence

from hcmi.drift.causes import TRAIN_WITH, Cause
from hcmi.drift.severity import LABEL_FREE, TOLERATED, WITHOUT_WRONG, Severity
from hcmi.wording import plural

OK, CHANGED, HURT, UNKNOWN = "ok", "changed", "search hurt", "cannot tell"
# Why a batch got the verdict `cannot tell`.
TOO_FEW, MACHINE, UNREADABLE = "too few", "machine", "unreadable"
NO_NEWS = "Nothing to do."
MEASURE_IT = "Write captions for the clips in captions_to_write.csv and run again: then search can be measured."
MORE_CAPTIONS = "More clips with captions would tell whether search suffers."
# Why R@1 of a batch is not known, as the end of a sentence -> what can be done about it.
NO_CAPTIONS = "fewer than 10 of these clips have captions"
NO_TEST_CAPTIONS = "fewer than 10 of the model's own test clips have captions"
NO_GALLERY = "the data set has no clips of another split, among which the captions would be ranked"
UNMEASURED = {NO_CAPTIONS: MEASURE_IT,
              NO_TEST_CAPTIONS: "Write captions for the test clips of the data set and run the pipeline again: then "
                                "search can be measured.",
              NO_GALLERY: "Give the data set clips for training too and run the pipeline again: then search can be "
                          "measured."}
COMMON = ("wrong captions", "copies within the batch", "copies of known clips", "empty captions")


def decide(drifted: bool, severity: Severity | None, causes: Sequence[Cause]) -> str:
    """Search hurt before changed: who reads one word reads the worse one."""
    if severity is not None and severity.is_hurt:
        return HURT
    return CHANGED if drifted or causes else OK


def summary(verdict: str, severity: Severity | None, changes: Sequence[str], causes: Sequence[Cause], num_clips: int,
            num_skipped: int, why: str, unmeasured: str = NO_CAPTIONS) -> str:
    """What happened, in at most four sentences: the search first, then the cause. `unmeasured`: why `severity` is None.
    """
    left_out = f" {plural(num_skipped, 'more clip')} could not be read." if num_skipped else ""
    if verdict == UNKNOWN:
        return why + left_out
    said = [f"{_capital(cause.sentence)}." for cause in causes]
    if changes and len(said) < 2:
        said.append(f"{_capital('; '.join(list(changes)[:3]))}.")
    measured = "" if severity is None else severity.sentence
    if verdict == OK:
        parts = [f"{plural(num_clips, 'clip')} like those that the model was tested on.",
                 measured or f"Search cannot be measured on them, because {unmeasured}.",
                 _too_few(severity)]
    elif verdict == HURT:
        guess = severity is not None and severity.how == LABEL_FREE
        parts = [f"Search {'probably ' if guess else ''}finds fewer of these clips.", measured, *said[:2]]
    else:
        part_is_lost = any(cause.advice == TRAIN_WITH for cause in causes)      # and its sentence says how much
        parts = [*said[:2], "" if part_is_lost else _harmless(severity, unmeasured), measured]
    return " ".join(filter(None, parts)) + left_out


def _too_few(severity: Severity | None) -> str:
    if severity is None or not severity.is_vague:
        return ""
    if severity.change_high < 0:
        return "Search finds fewer of these clips; there are too few captions to tell how many fewer."
    return "There are too few captions to tell whether search finds these clips as well as before."


def _harmless(severity: Severity | None, unmeasured: str) -> str:
    if severity is None:
        return f"Nobody can say whether search suffers, because {unmeasured}."
    if severity.is_vague:
        return _too_few(severity)
    if severity.how == WITHOUT_WRONG:
        return "Search finds the clips with right captions as well as before."
    if severity.how == LABEL_FREE:
        return "Nothing in the clips says that search finds them less; only captions can show it."
    if severity.change_high < 0:
        return "Search finds fewer of these clips; the difference may be too small to matter."
    if severity.change <= -TOLERATED:
        return "Search may find slightly fewer of these clips; the difference is within what chance gives."
    return "Search finds these clips as well as before."


def advise(verdict: str, severity: Severity | None, causes: Sequence[Cause], reason: str,
           unmeasured: str = NO_CAPTIONS) -> str:
    """What to do, in one or two sentences. `unmeasured`: why `severity` is None."""
    vague = severity is not None and severity.is_vague
    if verdict == OK:
        return f"Nothing to do now. {MORE_CAPTIONS}" if vague else NO_NEWS
    if verdict == UNKNOWN:
        return {TOO_FEW: "Collect more clips and run again.",
                MACHINE: "The batch is not at fault. Run again when the machine is less busy."}.get(
                    reason, "Correct what the report names and run again.")
    if verdict == HURT:
        if severity is not None and severity.how == LABEL_FREE:
            return MEASURE_IT
        ways = [cause.advice for cause in causes if cause.advice != TRAIN_WITH]      # the next sentence says how
        train = "Caption the clips in captions_to_write.csv, add them to the training data and train again."
        return " ".join([*ways[:1], train] if not causes or causes[0].name not in COMMON else ways[:2])
    if causes:
        return " ".join(cause.advice for cause in causes[:2])
    if severity is None:
        return UNMEASURED[unmeasured]
    if vague:
        return f"{MORE_CAPTIONS} If you expect more clips like these, add some to the training data."
    return "Nothing needs to be done now. If you expect more clips like these, add some to the training data."


def summary_of_queries(verdict: str, changes: Sequence[str], causes: Sequence[Cause], count: int, why: str) -> str:
    """What happened in a query log."""
    if verdict == UNKNOWN:
        return why
    if verdict == OK:
        return f"{plural(count, 'query', 'queries')} like the captions that the model was tested on."
    said = [cause.sentence for cause in causes] + list(changes)[:3]
    return f"{plural(count, 'query', 'queries')}. " + " ".join(f"{_capital(one)}." for one in said)


def advise_on_queries(verdict: str, causes: Sequence[Cause]) -> str:
    """What to do about a query log."""
    if verdict == OK:
        return NO_NEWS
    if verdict == UNKNOWN:
        return "Correct what the report names, or collect more queries, and run again."
    return " ".join(cause.advice for cause in causes) or \
        "People search in other words than those that the model was trained on. Train with captions like these queries."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
