"""Long videos: films of 20 minutes that are joined from clips of Scenes, searched for known seconds.

Each film is a folder with one file, searched as `hcmi search --videos` does it: for captions of whole clips and for
single events. An event may be shown several times; every showing is right. Per cent of the queries:

- `caption_touch`, `event_touch`: the first answer shares time with the true seconds
- `caption_r1_iou50`, `event_r1_iou50`: their intersection is at least half of their union
- `..._one_of_five`: one of the moments that are listed of the film shares time with them
- `shots_...`: the same with windows from cut to cut (`windows.cut: shots`); left out without the extra `hcmi[shots]`
- `before_...`: the same with the pieces of 30 s that came before windows
- `known_...`: the same when the cuts are known. The film's clips are files of their own; the first answer is the clip
- `index_s_per_hour`, `index_mib_per_hour`: wall clock and disk space of the index, for an hour of film
- `index_cpu_s_per_hour`: processor time of all processes, which other work on the machine disturbs less
- `peak_mib`, `decoder_mib`: peak memory of the process that encodes, and of the largest one that decodes
- `hour_caption_touch`, `hour_event_touch`: as without `hour_`, for the queries of all films in the film of an hour

The last ones are measured on the film of an hour that all films make together; `shots_index_...` of them by shots.

    python benchmarks/long_videos.py [--quick] [--model DIR] [--split val [--cut shots] [--seconds S --overlap S]]

Settings are chosen on `--split val`, never on test.
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from common import shipped, table, write_result
from moments import iou

from hcmi.config import WindowsConfig
from hcmi.model import HcmiModel, load_retriever
from hcmi.scenes import STANDARD, Event, phrase, single_events, write_scenes
from hcmi.search import Retriever
from hcmi.search.folder_index import WINDOWS, index_folder

FILM_SECONDS = 1200.0
NUM_FILMS = 3
QUERIES = 100               # of each kind, of each film
BEFORE = WindowsConfig(cut="fixed", seconds=30.0, overlap_seconds=0.0, whole_seconds=60.0)
SHOTS = WINDOWS.model_copy(update={"cut": "shots"})
HAS_SHOTS = importlib.util.find_spec("scenedetect") is not None
Span = tuple[float, float]


@dataclass(frozen=True)
class Film:
    """A film, its clips, the queries of each kind with their true seconds, and the seconds of every event."""

    path: Path
    clips: list[tuple[Path, Span]]
    queries: dict[str, list[tuple[str, list[Span]]]]
    shown: dict[str, list[Span]]


def make_films(split: str, folder: Path, count: int, seconds: float) -> list[Film]:
    """Films of different clips, in random order; written to `folder`, unless they are there."""
    many = round(count * seconds / 2.4)         # the mean length of a clip is 2.6 s
    config = STANDARD.model_copy(update={"num_train": 1, "num_val": many if split == "val" else 1,
                                         "num_test": many if split == "test" else 1, "num_incoming": 1})
    if not (folder / "scenes/annotation.jsonl").exists():
        write_scenes(config, 0, folder / "scenes")
    lines = (folder / "scenes/annotation.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["split"] == split]
    random.Random(7).shuffle(records)
    films, left = [], iter(records)
    for number in range(count):
        spans: list[tuple[dict, Span]] = []
        while not spans or spans[-1][1][1] < seconds:
            start_s = spans[-1][1][1] if spans else 0.0
            record = next(left)
            spans.append((record, (start_s, start_s + record["num_frames"] / config.fps)))
        clips = [(folder / f"scenes/videos/{record['video_id']}.mp4", span) for record, span in spans]
        path = join([clip for clip, _ in clips], folder / f"{number}/film.mp4", config.fps)
        films.append(Film(path, clips, *ask(spans, random.Random(number))))
    return films


def join(clips: Sequence[Path], path: Path, fps: int) -> Path:
    """One H.264 film of all clips, encoded anew; an earlier one is kept."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent.with_suffix(".partial.mp4")
    with av.open(str(partial), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = STANDARD.width, STANDARD.height, "yuv420p"
        for number, frame in enumerate(frames_of(clips)):
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, fps), 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    partial.replace(path)
    return path


def frames_of(clips: Sequence[Path]) -> Iterator[av.VideoFrame]:
    for clip in clips:
        with av.open(str(clip)) as container:
            yield from container.decode(video=0)


def ask(spans: list[tuple[dict, Span]], rng: random.Random
        ) -> tuple[dict[str, list[tuple[str, list[Span]]]], dict[str, list[Span]]]:
    """Captions of whole clips and single events, drawn at random, each with all seconds at which it is true.

    And the seconds of all events, also of those that were not drawn.
    """
    shown: dict[str, list[Span]] = defaultdict(list)
    single: list[str] = []
    for record, (start_s, _) in spans:
        events = [Event(**event) for event in record["events"]]
        for event in events:
            shown[phrase(event)].append((start_s + event.start_s, start_s + event.end_s))
        single += map(phrase, single_events(events))
    captions = [(rng.choice(record["captions"]), [span]) for record, span in spans]
    events = [(text, shown[text]) for text in single]
    drawn = {name: rng.sample(queries, min(QUERIES, len(queries)))
             for name, queries in (("caption", captions), ("event", events))}
    return drawn, shown


def shares(one: Span, others: list[Span]) -> bool:
    return any(min(one[1], other[1]) > max(one[0], other[0]) for other in others)


def search_film(film: Film, model: HcmiModel, windows: WindowsConfig, cache: Path) -> dict[str, list[float]]:
    """Figure -> 0 or 100 for each query."""
    retriever = Retriever.from_folder(film.path.parent, model, cache=cache, windows=windows)
    found: dict[str, list[float]] = defaultdict(list)
    for kind, queries in film.queries.items():
        for text, truth in queries:
            hit, = retriever.search(text, top=1)
            first = (hit.start_s, hit.end_s)
            moments = [first, *((other.start_s, other.end_s) for other in hit.more)]
            for name, right in (("touch", shares(first, truth)),
                                ("r1_iou50", any(iou(first, span) >= 0.5 for span in truth)),
                                ("one_of_five", any(shares(moment, truth) for moment in moments))):
                found[f"{kind}_{name}"].append(100.0 * right)
    return found


def search_clips(film: Film, model: HcmiModel, folder: Path) -> dict[str, list[float]]:
    """As `search_film`, in the film's clips as files of their own."""
    spans = {}
    folder.mkdir(exist_ok=True)
    for clip, span in film.clips:
        if not (folder / clip.name).exists():
            (folder / clip.name).hardlink_to(clip)
        spans[clip.name] = span
    retriever = Retriever.from_folder(folder, model, cache=folder / ".cache")
    found: dict[str, list[float]] = defaultdict(list)
    for kind, queries in film.queries.items():
        for text, truth in queries:
            hit, = retriever.search(text, top=1)
            found[f"known_{kind}_touch"].append(100.0 * shares(spans[Path(hit.path).name], truth))
    return found


def join_all(films: list[Film], root: Path) -> Film:
    """One film that all films make together, with their queries at its own seconds."""
    clips: list[tuple[Path, Span]] = []
    asked: dict[str, list[tuple[str, list[Span]]]] = defaultdict(list)
    shown: dict[str, list[Span]] = defaultdict(list)
    for film in films:
        start_s = clips[-1][1][1] if clips else 0.0

        def later(spans: list[Span], by: float = start_s) -> list[Span]:
            return [(start + by, end + by) for start, end in spans]

        for text, spans in film.shown.items():
            shown[text] += later(spans)
        for kind, queries in film.queries.items():      # an event may be shown in a later film too
            asked[kind] += [(text, shown[text] if kind == "event" else later(truth)) for text, truth in queries]
        clips += [(clip, later([span])[0]) for clip, span in film.clips]
    path = join([clip for clip, _ in clips], root / "hour/film.mp4", STANDARD.fps)
    return Film(path, clips, asked, shown)


def measure_indexing(film: Film, model: Path, cut: str = "fixed") -> dict[str, float]:
    """Time and peak memory of indexing a film, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--index", str(film.path.parent), "--model", str(model), "--cut",
                           cut], check=True, text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def index_here(folder: Path, model_folder: Path, cut: str) -> dict[str, float]:
    """What `measure_indexing` measures, in this process."""
    model = load_retriever(model_folder)
    with av.open(str(folder / "film.mp4")) as container:
        seconds = container.duration / av.time_base
    with tempfile.TemporaryDirectory() as cache:
        started, before = time.perf_counter(), os.times()
        index_folder(model, folder, cache, SHOTS if cut == "shots" else WINDOWS)
        took_s, after = time.perf_counter() - started, os.times()
        size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    hours = seconds / 3600
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"film_s": seconds, "index_s_per_hour": took_s / hours,
            "index_cpu_s_per_hour": (sum(after[:4]) - sum(before[:4])) / hours,
            "index_mib_per_hour": size / 2**20 / hours, "peak_mib": own, "decoder_mib": child}


def mean(prefix: str, found: Iterable[dict[str, list[float]]]) -> dict[str, float]:
    """Figure -> the mean over the queries of all films."""
    together: dict[str, list[float]] = defaultdict(list)
    for of_film in found:
        for name, values in of_film.items():
            together[prefix + name] += values
    return {name: sum(values) / len(values) for name, values in together.items()}


def compare(options: argparse.Namespace, figures_of: Callable[[WindowsConfig], dict[str, float]]) -> None:
    """Print the figures of several lengths and overlaps of windows."""
    rows = []
    for seconds in options.seconds or [WINDOWS.seconds]:
        for share in options.overlap or [WINDOWS.overlap_seconds / WINDOWS.seconds]:
            found = figures_of(WindowsConfig(cut=options.cut, seconds=seconds, overlap_seconds=share * seconds,
                                             whole_seconds=WINDOWS.whole_seconds))
            rows.append((seconds, share * seconds, *found.values()))
    print(table(["window s", "overlap s", *found], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one film of 3 minutes")
    parser.add_argument("--model", type=Path, help="default: models/hcmi, made with the shipped parameters")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--cut", choices=("fixed", "shots"), default="fixed", help="with --split val")
    parser.add_argument("--films", type=int, default=NUM_FILMS)
    parser.add_argument("--seconds", type=float, nargs="+", help="with --split val: lengths of windows to compare")
    parser.add_argument("--overlap", type=float, nargs="+", help="and shares of the length that they overlap")
    parser.add_argument("--work", type=Path, help="keep films and indexes here, and use those of an earlier run")
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.index:
        print(json.dumps(index_here(options.index, options.model, options.cut)))
        return
    options.model = options.model or Path(shipped("models/hcmi"))
    model = load_retriever(options.model)
    with nullcontext(options.work) if options.work else tempfile.TemporaryDirectory() as place:
        root = Path(place)
        films = make_films(options.split, root, 1 if options.quick else options.films,
                           180.0 if options.quick else FILM_SECONDS)

        def figures_of(windows: WindowsConfig, prefix: str = "") -> dict[str, float]:
            return mean(prefix, (search_film(film, model, windows, root / "cache") for film in films))

        if options.split == "val":
            compare(options, figures_of)
            return
        known = mean("", (search_clips(film, model, root / f"clips-{number}") for number, film in enumerate(films)))
        hour = join_all(films, root)
        figures: dict[str, float | None] = {
            "films": len(films), "clips": sum(len(film.clips) for film in films),
            "queries": sum(len(queries) for film in films for queries in film.queries.values()),
            **figures_of(WINDOWS), **(figures_of(SHOTS, "shots_") if HAS_SHOTS else {}),
            **figures_of(BEFORE, "before_"), **known,
            **mean("hour_", [search_film(hour, model, WINDOWS, root / "cache")]),
            **measure_indexing(hour, options.model)}
        if HAS_SHOTS:
            figures |= {f"shots_{name}": value for name, value in measure_indexing(hour, options.model, "shots").items()
                        if name != "film_s"}
    print(table(["figure", "value"], figures.items()))
    print(write_result("long_videos", figures, options.quick))


if __name__ == "__main__":
    main()
