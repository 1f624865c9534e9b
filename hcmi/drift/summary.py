"""What has changed in a batch, in plain words. Pure."""

from dataclasses import dataclass

from hcmi.drift.compare import CLASSIFIER, Shift
from hcmi.drift.profile import VIDEO_LEVELS


@dataclass(frozen=True)
class Column:
    """The name and unit of a column; `less` and `more` say what a smaller or larger median means."""

    label: str
    unit: str
    digits: int
    less: str
    more: str


COLUMNS = {
    "video_embedding": Column("what the clips show (whole clip)", "", 4, "", ""),
    "clip_embedding": Column("what the clips show (their parts)", "", 4, "", ""),
    "frame_embedding": Column("what the clips show (their frames)", "", 4, "", ""),
    "caption_embedding": Column("what the captions say", "", 4, "", ""),
    "classifier": Column("how well a classifier tells the clips apart", "", 3, "", ""),
    "nearest_known": Column("similarity to the nearest known clip", "", 2, "clips resemble the known ones less",
                            "clips resemble the known ones more"),
    "unknown_words": Column("share of words that no training caption has", "", 3, "captions have fewer unknown words",
                            "captions have more unknown words"),
    "rank": Column("mean rank of the own clip", "", 1, "captions find their clip at better ranks",
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
SCORES = ("rank", "own_score", "top1_score", "margin", "entropy", "unknown_words")
LOOKS = {**dict.fromkeys((*VIDEO_LEVELS, CLASSIFIER), "the clips look different to the model"),
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


def changes(shifts: list[Shift], with_scores: bool = True) -> list[str]:
    """What has drifted, in order of size; pictures before scores, because they are the cause."""
    drifted = [shift for shift in shifts if shift.drifted and (with_scores or _group(shift.name) < 2)]
    drifted.sort(key=lambda shift: (_group(shift.name), -shift.ratio))
    return list(dict.fromkeys(change(shift) for shift in drifted))


def _group(name: str) -> int:
    return 1 if name in LOOKS else 2 if name in SCORES else 0
