"""A batch's figures in plain words. Pure."""

from dataclasses import dataclass

from hcmi.drift.profile import Shift

OK, DRIFT, SMALL, UNREADABLE = "ok", "drift", "too small to judge", "unreadable"


@dataclass(frozen=True)
class Column:
    """The name and unit of a column; `less` and `more` say what a smaller or larger median means."""

    label: str
    unit: str
    digits: int
    less: str
    more: str


COLUMNS = {
    "video_embedding": Column("what the clips show (video embedding)", "", 4, "", ""),
    "caption_embedding": Column("what the captions say (caption embedding)", "", 4, "", ""),
    "rank": Column("rank of the own clip", "", 0, "captions find their clip at better ranks",
                   "captions find their clip at worse ranks"),
    "own_score": Column("score of the own clip", "", 3, "captions match their own clip less",
                        "captions match their own clip more"),
    "top1_score": Column("best score", "", 3, "even the best match scores lower", "the best match scores higher"),
    "margin": Column("best score minus second best", "", 3, "the best match leads by less",
                     "the best match leads by more"),
    "entropy": Column("uncertainty (entropy)", "nat", 2, "the model is more certain", "the model is less certain"),
    "caption_words": Column("words per caption", "", 0, "captions are shorter", "captions are longer"),
    "duration_s": Column("length", "s", 1, "clips are shorter", "clips are longer"),
    "width": Column("picture width", "px", 0, "pictures are narrower", "pictures are wider"),
    "height": Column("picture height", "px", 0, "pictures are less tall", "pictures are taller"),
    "brightness": Column("brightness", "of 255", 0, "clips are darker", "clips are brighter"),
    "contrast": Column("contrast", "of 255", 0, "clips have less contrast", "clips have more contrast"),
    "saturation": Column("colourfulness", "of 255", 0, "colours are paler", "colours are stronger"),
    "warmth": Column("warmth (red minus blue)", "", 0, "colours are colder", "colours are warmer"),
    "sharpness": Column("sharpness and grain", "", 1, "clips are smoother or blurrier",
                        "clips are sharper or grainier"),
    "motion": Column("motion", "", 1, "there is less motion", "there is more motion"),
}
LOOKS = {"video_embedding": "the clips look different to the model",
        "caption_embedding": "the captions differ in meaning"}


def change(shift: Shift) -> str:
    """`clips are darker: brightness 62 of 255 instead of 118`."""
    if shift.name in LOOKS:
        return LOOKS[shift.name]
    column = COLUMNS[shift.name]
    was, now = (f"{value:.{column.digits}f}" for value in (shift.reference, shift.batch))
    unit = f" {column.unit}" if column.unit else ""
    if was == now:
        return f"{column.label} is spread differently around the same median of {now}{unit}"
    return f"{column.more if shift.batch > shift.reference else column.less}: " \
           f"{column.label} {now}{unit} instead of {was}"


def changes(shifts: list[Shift]) -> list[str]:
    """What has drifted, the largest ratio to its limit first; pictures before scores, because they are the cause."""
    drifted = [shift for shift in shifts if shift.drifted]
    return [change(shift) for shift in sorted(drifted, key=lambda s: (_group(s.name), -s.distance / s.threshold))]


def _group(name: str) -> int:
    return 0 if name in LOOKS else 2 if name in ("rank", "own_score", "top1_score", "margin", "entropy") else 1


def summary(verdict: str, shifts: list[Shift], num_clips: int, num_skipped: int, why: str = "") -> str:
    """One or two sentences for the top of the report."""
    left_out = f" {num_skipped} more could not be read." if num_skipped else ""
    if verdict == UNREADABLE:
        return why
    if verdict == SMALL:
        return f"{why}{left_out} The figures below give no verdict."
    if verdict == OK:
        return f"These {num_clips} clips look like those the model was tested on.{left_out}"
    said = changes(shifts)
    return f"These {num_clips} clips differ from those the model was tested on: {'; '.join(said[:3])}.{left_out}"


def advice(verdict: str, measured: float | None, expected: float | None,
           difference: tuple[float, float] | None) -> str:
    """What to do. `measured` and `expected`: R@1 in per cent of the batch and the reference; `difference`: the interval
    of the first minus the second.
    """
    if verdict == OK:
        return "Nothing to do."
    if verdict == SMALL:
        return "Collect more clips and run again."
    if verdict == UNREADABLE:
        return "Correct this and run again."
    if measured is None or expected is None or difference is None:
        return "Look at the clips. If you expect more like them, caption some, add them to the training data and " \
               "train again."
    if difference[1] < 0:
        return f"Search finds fewer of these clips (R@1 {measured:.0f} % instead of {expected:.0f} %). Caption some, " \
               "add them to the training data and train again."
    return "Search finds them as well as before. If you expect more like them, add some to the training data."
