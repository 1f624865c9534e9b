"""Tables and pictures of one evaluation, into a folder that `dvc plots show` can read."""

import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hcmi.encode import EncodedSplit
from hcmi.evaluate.drawing import save_figure, style_axes
from hcmi.evaluate.metrics import Ranks, bootstrap_interval
from hcmi.shards import ShardReader, pick_frames
from hcmi.wording import shortened

COLOURS = {"t2v": "#1b6ca8", "v2t": "#d9822b", "right": "#2e8b57", "wrong": "#c0392b"}
NAMES = {"t2v": "text to video", "v2t": "video to text"}
RANK_BINS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, None))
CAPTION_WORDS = (5, 10, 15, 20, 30)
CLIP_SECONDS = (2, 5, 10, 20, 30, 60)
MAX_TAG_VALUES = 12         # a tag with more values names clips, and does not divide them into slices
MIN_SLICE = 5               # queries; figures of smaller slices mean nothing
SLICE_SAMPLES = 500
NUM_WORST = 6
SHEET_FRAMES = 6
SHEET_PIXELS = 160          # height that frames are enlarged to
TITLE_INCHES, LABEL_INCHES, STRIP_INCHES = 0.5, 0.28, 1.65
GROUP_GAP = 0.5             # in bars, between the slices of one kind and the next
QUERY_INCHES = TITLE_INCHES + 2 * (LABEL_INCHES + STRIP_INCHES) + 0.2


def write_plots(folder: Path, reader: ShardReader, encoded: EncodedSplit, sims_QV: NDArray,
                found: dict[str, Ranks]) -> None:
    """Write every table and picture of this evaluation into `folder`, which exists.

    `found`: the ranks of each direction, `t2v` and `v2t`.
    """
    queries = query_table(reader, encoded, sims_QV, found)
    queries.to_parquet(folder / "ranks.parquet", index=False, compression="zstd")
    curve, histogram = recall_curve(found), rank_histogram(found)
    slices = slice_table(reader, encoded, found)
    worst = worst_queries(queries)
    for name, table in (("recall_curve", curve), ("rank_histogram", histogram), ("slices", slices),
                        ("worst_queries", worst)):
        table.to_csv(folder / f"{name}.csv", index=False)
    draw_recall_curve(curve, folder / "recall_curve.png")
    draw_rank_histogram(histogram, folder / "rank_histogram.png")
    draw_slices(slices, folder / "slices.png")
    draw_worst_queries(worst, reader, encoded, folder / "worst_queries.png")


def query_table(reader: ShardReader, encoded: EncodedSplit, sims_QV: NDArray, found: dict[str, Ranks]) -> pd.DataFrame:
    """One row per query of either direction: the rank of its answer, and which answer came first."""
    ids = np.array(encoded.video_ids)
    numbers = np.concatenate([np.arange(len(clip.captions)) for clip in reader.clips])
    captions = np.array(encoded.captions, dtype=object)
    videos = np.unique(encoded.caption_video)
    names = np.array([f"{ids[video]}#{number}" for video, number in zip(encoded.caption_video, numbers, strict=True)])
    return pd.concat([
        _directed("t2v", names, ids[encoded.caption_video], captions, found["t2v"], ids[sims_QV.argmax(1)]),
        _directed("v2t", ids[videos], ids[videos], np.full(len(videos), ""), found["v2t"],
                  names[sims_QV.T[videos].argmax(1)])], ignore_index=True)


def _directed(direction, query, video_id, text, found: Ranks, first) -> pd.DataFrame:
    return pd.DataFrame({"direction": direction, "query": query, "video_id": video_id, "text": text,
                         "rank": found.expected, "greater": found.greater, "tied": found.tied,
                         "winners": found.winners, "first": first})


def recall_curve(found: dict[str, Ranks]) -> pd.DataFrame:
    """R@K in per cent for K from 1 to 100, both directions."""
    places = sorted({round(float(k)) for k in np.geomspace(1, 100, 25)} | {1, 5, 10, 50})
    return pd.DataFrame({"k": places, **{name: [round(100 * r.hits_at(k).mean(), 4) for k in places]
                                         for name, r in found.items()}})


def rank_histogram(found: dict[str, Ranks]) -> pd.DataFrame:
    """Share of the queries, in per cent, whose answer is in each range of ranks."""
    rows = []
    for low, high in RANK_BINS:
        label = f"{low}" if low == high else f"{low}-{high}" if high else f"{low}+"
        shares = {name: 100 * ((r.hits_at(high) if high else 1.0) - r.hits_at(low - 1)).mean()
                  for name, r in found.items()}
        rows.append({"rank": label, **{name: round(float(share), 4) for name, share in shares.items()}})
    return pd.DataFrame(rows)


def slice_labels(reader: ShardReader) -> dict[str, list[str]]:
    """Slice -> label of each clip, for clip length and for the manifest's tags that have few values."""
    labels = {"clip_seconds": [_range(clip.end_s - clip.start_s, CLIP_SECONDS) for clip in reader.clips]}
    for tag in sorted({tag for clip in reader.clips for tag in clip.tags}):
        values = [clip.tags.get(tag, "") for clip in reader.clips]
        if len(set(values)) <= MAX_TAG_VALUES:
            labels[tag] = values
    return {name: values for name, values in labels.items() if len(set(values)) > 1}


def _range(value: float, edges: tuple[int, ...], step: int = 0) -> str:
    """The range that contains `value`. `step`: 1 for counts (6-10 follows 1-5), 0 for lengths (5-10 follows 0-5)."""
    low = 0
    for edge in edges:
        if value <= edge:
            return f"{low + step}-{edge}"
        low = edge
    return f"over {low}"


def slice_table(reader: ShardReader, encoded: EncodedSplit, found: dict[str, Ranks]) -> pd.DataFrame:
    """Figures per slice and direction: by caption length for text to video, by clip length and tags for both."""
    words = np.array([_range(len(caption.split()), CAPTION_WORDS, 1) for caption in encoded.captions])
    captioned = np.unique(encoded.caption_video)
    rows = [("caption_words", "t2v", words)] if len(set(words)) > 1 else []
    for name, values in slice_labels(reader).items():
        labels = np.array(values)
        rows += [(name, "t2v", labels[encoded.caption_video]), (name, "v2t", labels[captioned])]
    table = [_slice_row(name, value, direction, found[direction][labels == value],
                        encoded.caption_video[labels == value] if direction == "t2v" else None)
             for name, direction, labels in rows for value in sorted(set(labels), key=_in_order)
             if (labels == value).sum() >= MIN_SLICE]
    return pd.DataFrame(table, columns=["slice", "value", "direction", "n", "R@1", "R@1_low", "R@1_high", "R@5", "R@10",
                                        "MdR", "MnR"])


def _in_order(value: str) -> tuple:
    head = value.removeprefix("over ").partition("-")[0]
    return (0, float(head), value) if head.replace(".", "", 1).isdecimal() else (1, 0.0, value)


def _slice_row(name: str, value: str, direction: str, found: Ranks, groups: NDArray | None) -> dict:
    low, high = bootstrap_interval(100 * found.hits_at(1), np.random.default_rng(0), SLICE_SAMPLES, groups)
    figures = {"R@1": 100 * found.hits_at(1).mean(), "R@1_low": low, "R@1_high": high,
               "R@5": 100 * found.hits_at(5).mean(), "R@10": 100 * found.hits_at(10).mean(),
               "MdR": np.median(found.expected), "MnR": found.expected.mean()}
    return {"slice": name, "value": value, "direction": direction, "n": len(found),
            **{key: round(float(figure), 4) for key, figure in figures.items()}}


def worst_queries(queries: pd.DataFrame) -> pd.DataFrame:
    """The captions whose right clip is ranked worst, worst first: one per clip, and none whose clip came first."""
    wrong = queries[(queries["direction"] == "t2v") & (queries["rank"] > 1) & (queries["first"] != queries["video_id"])]
    ordered = wrong.sort_values(["rank", "query"], ascending=[False, True]).drop_duplicates("video_id")
    return ordered[["query", "text", "video_id", "rank", "first"]].head(NUM_WORST)


def draw_recall_curve(curve: pd.DataFrame, path: Path) -> None:
    axes = _axes(path, "Recall: is the right answer among the first K?")
    for name in NAMES:
        axes.plot(curve["k"], curve[name], color=COLOURS[name], label=NAMES[name], marker="o", markersize=3)
    axes.set(xscale="log", xlabel="K", ylabel="queries found, %", ylim=(0, 102), xticks=[1, 2, 5, 10, 20, 50, 100])
    axes.set_xticklabels(["1", "2", "5", "10", "20", "50", "100"])
    axes.minorticks_off()
    _save(axes, path)


def draw_rank_histogram(histogram: pd.DataFrame, path: Path) -> None:
    axes = _axes(path, "Rank of the right answer")
    places = np.arange(len(histogram))
    for shift, name in ((-0.2, "t2v"), (0.2, "v2t")):
        bars = axes.bar(places + shift, histogram[name], 0.4, color=COLOURS[name], label=NAMES[name])
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set(xlabel="rank", ylabel="queries, %", xticks=places)
    axes.set_xticklabels(histogram["rank"])
    _save(axes, path)


def draw_slices(slices: pd.DataFrame, path: Path) -> None:
    """Draw R@1 of text to video with its interval, one bar per slice."""
    rows = slices[slices["direction"] == "t2v"]
    places = -(np.arange(len(rows)) + GROUP_GAP * rows["slice"].ne(rows["slice"].shift()).cumsum().to_numpy())
    height = np.ptp(places) if len(rows) else 0.0
    figure = Figure(figsize=(7, 1.5 + 0.3 * height), layout="constrained")
    axes = figure.add_subplot(title="R@1 per slice, text to video, with 95 % interval")
    errors = np.abs(rows[["R@1_low", "R@1_high"]].to_numpy().T - rows["R@1"].to_numpy())
    axes.barh(places, rows["R@1"], color=COLOURS["t2v"], height=0.75)
    axes.errorbar(rows["R@1"], places, xerr=errors, fmt="none", ecolor="black", capsize=2, linewidth=1)
    for place, high, value in zip(places, rows["R@1_high"], rows["R@1"], strict=True):
        axes.annotate(f"{value:.1f}", (high, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set(xlabel="R@1, %", xlim=(0, 105), xticks=range(0, 101, 20), yticks=places)
    axes.margins(y=0.5 / (height + 1))
    axes.set_yticklabels([f"{row['slice'].replace('_', ' ')}: {row['value']}  (n={row['n']})"
                          for _, row in rows.iterrows()], parse_math=False)
    _save(axes, path, legend=False)


def draw_worst_queries(worst: pd.DataFrame, reader: ShardReader, encoded: EncodedSplit, path: Path) -> None:
    """Draw, for each query, the frames of the right clip (green) above those of the clip that came first (red)."""
    inches = QUERY_INCHES * len(worst) or 1.2
    figure = Figure(figsize=(10, inches))
    if worst.empty:
        figure.text(0.5, 0.5, "Every caption found its clip first.", ha="center", va="center")
    rows = {video_id: row for row, video_id in enumerate(encoded.video_ids)}
    for number, query in enumerate(worst.to_dict("records")):
        bottom = inches - QUERY_INCHES * number - TITLE_INCHES
        title = textwrap.wrap(f"“{shortened(query['text'], 200)}”", 105)
        figure.text(0.01, bottom / inches, "\n".join(title), fontsize=10, fontweight="bold", va="bottom",
                    parse_math=False)       # matplotlib would read what is between two dollars as mathematics
        first = reader.clips[rows[query["first"]]]
        caption = shortened(first.captions[0], 100) if first.captions else "no caption"
        strips = (("right", query["video_id"], f"right, rank {query['rank']:g}: {query['video_id']}"),
                  ("wrong", query["first"], f"came first: {query['first']}, “{caption}”"))
        for kind, video_id, label in strips:
            bottom -= LABEL_INCHES
            figure.text(0.01, (bottom + 0.05) / inches, label, fontsize=9, color=COLOURS[kind], va="bottom",
                        parse_math=False)
            bottom -= STRIP_INCHES
            axes = figure.add_axes((0.01, bottom / inches, 0.98, STRIP_INCHES / inches))
            axes.imshow(_strip(reader, rows[video_id], kind), interpolation="nearest", aspect="auto")
            axes.set_axis_off()
    save_figure(figure, path)


def _strip(reader: ShardReader, row: int, kind: str) -> NDArray:
    """The clip's frames side by side on a background of the kind's colour, uint8 [H, X, 3]."""
    frames_THXC = reader.frames(row, pick_frames(len(reader.stored[row].times_s), SHEET_FRAMES))
    zoom = max(1, round(SHEET_PIXELS / frames_THXC.shape[1]))
    frames_THXC = frames_THXC.repeat(zoom, 1).repeat(zoom, 2)
    _, height, width, _ = frames_THXC.shape
    edge = max(2, height // 40)
    ground = np.full((height + 2 * edge, SHEET_FRAMES * (width + edge) + edge, 3), 255, np.uint8)
    ground[:, :len(frames_THXC) * (width + edge) + edge] = np.round(255 * np.array(to_rgb(COLOURS[kind])))
    for place, frame_HXC in enumerate(frames_THXC):
        left = edge + place * (width + edge)
        ground[edge:edge + height, left:left + width] = frame_HXC
    return ground


def _axes(path: Path, title: str) -> Axes:
    return Figure(figsize=(7, 4), layout="constrained").add_subplot(title=title)


def _save(axes: Axes, path: Path, legend: bool = True) -> None:
    style_axes(axes)
    if legend:
        axes.legend(frameon=False)
    figure = axes.get_figure(root=True)
    assert figure is not None
    save_figure(figure, path)
