"""Long videos: films of 20 minutes that are joined from clips of Scenes, searched for known seconds.

Each film is a folder with one file, searched as `hcmi search --videos` does it: for captions of whole clips and for
single events. An event may be shown several times; every showing is right. Per cent of the queries:

- `caption_touch`, `event_touch`: the first answer shares time with the true seconds
- `caption_r1_iou50`, `event_r1_iou50`: their intersection is at least half of their union
- `..._one_of_five`: one of the moments that are listed of the film shares time with them
- `before_...`: the same with the pieces of 30 s that came before windows
- `known_...`: the same when the cuts are known. The film's clips are files of their own; the first answer is the clip
- `index_s_per_hour`, `index_mib_per_hour`: wall clock and disk space of the index, for an hour of film
- `peak_mib`, `decoder_mib`: peak memory of the process that encodes, and of the largest one that decodes

The last four are measured on the film of an hour that all films make together.

    python benchmarks/long_videos.py [--quick] [--model DIR] [--split val [--seconds S --overlap S]]

Settings are chosen on `--split val`, never on test.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
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
BEFORE = WindowsConfig(seconds=30.0, overlap_seconds=0.0, whole_seconds=60.0)
Span = tuple[float, float]


@dataclass(frozen=True)
class Film:
    """A film, the files of its clips, and the queries of each kind with their true seconds."""

    path: Path
    clips: list[tuple[Path, Span]]
    queries: dict[str, list[tuple[str, list[Span]]]]


def make_films(split: str, folder: Path, count: int, seconds: float) -> list[Film]:
    """Films of different clips, in random order; written to `folder`."""
    many = round(count * seconds / 2.4)         # the mean length of a clip is 2.6 s
    config = STANDARD.model_copy(update={"num_train": 1, "num_val": many if split == "val" else 1,
                                         "num_test": many if split == "test" else 1, "num_incoming": 1})
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
        films.append(Film(path, clips, ask(spans, random.Random(number))))
    return films


def join(clips: Sequence[Path], path: Path, fps: int) -> Path:
    """One H.264 film of all clips, encoded anew."""
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = STANDARD.width, STANDARD.height, "yuv420p"
        for number, frame in enumerate(frames_of(clips)):
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, fps), 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def frames_of(clips: Sequence[Path]) -> Iterator[av.VideoFrame]:
    for clip in clips:
        with av.open(str(clip)) as container:
            yield from container.decode(video=0)


def ask(spans: list[tuple[dict, Span]], rng: random.Random) -> dict[str, list[tuple[str, list[Span]]]]:
    """Captions of whole clips and single events, drawn at random, each with all seconds at which it is true."""
    shown: dict[str, list[Span]] = defaultdict(list)
    single: list[str] = []
    for record, (start_s, _) in spans:
        events = [Event(**event) for event in record["events"]]
        for event in events:
            shown[phrase(event)].append((start_s + event.start_s, start_s + event.end_s))
        single += map(phrase, single_events(events))
    captions = [(rng.choice(record["captions"]), [span]) for record, span in spans]
    events = [(text, shown[text]) for text in single]
    return {name: rng.sample(queries, min(QUERIES, len(queries)))
            for name, queries in (("caption", captions), ("event", events))}


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
    folder.mkdir()
    for clip, span in film.clips:
        (folder / clip.name).hardlink_to(clip)
        spans[clip.name] = span
    retriever = Retriever.from_folder(folder, model, cache=folder / ".cache")
    found: dict[str, list[float]] = defaultdict(list)
    for kind, queries in film.queries.items():
        for text, truth in queries:
            hit, = retriever.search(text, top=1)
            found[f"known_{kind}_touch"].append(100.0 * shares(spans[Path(hit.path).name], truth))
    return found


def measure_indexing(films: list[Film], model: Path, root: Path) -> dict[str, float]:
    """Time and peak memory of indexing one film that all films make together, in a process of its own."""
    path = join([clip for film in films for clip, _ in film.clips], root / "hour/film.mp4", STANDARD.fps)
    done = subprocess.run([sys.executable, __file__, "--index", str(path.parent), "--model", str(model)], check=True,
                          text=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def index_here(folder: Path, model_folder: Path) -> dict[str, float]:
    """What `measure_indexing` measures, in this process."""
    model = load_retriever(model_folder)
    with av.open(str(folder / "film.mp4")) as container:
        seconds = container.duration / av.time_base
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        index_folder(model, folder, cache)
        took_s = time.perf_counter() - started
        size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"film_s": seconds, "index_s_per_hour": took_s * 3600 / seconds, "index_mib_per_hour": size / 2**20 * 3600
            / seconds, "peak_mib": own, "decoder_mib": child}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one film of 3 minutes")
    parser.add_argument("--model", type=Path, help="default: models/hcmi, made with the shipped parameters")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--films", type=int, default=NUM_FILMS)
    parser.add_argument("--seconds", type=float, nargs="+", help="with --split val: lengths of windows to compare")
    parser.add_argument("--overlap", type=float, nargs="+", help="and shares of the length that they overlap")
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.index:
        print(json.dumps(index_here(options.index, options.model)))
        return
    options.model = options.model or Path(shipped("models/hcmi"))
    model = load_retriever(options.model)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        films = make_films(options.split, root, 1 if options.quick else options.films,
                           180.0 if options.quick else FILM_SECONDS)

        def figures_of(windows: WindowsConfig, prefix: str = "") -> dict[str, float]:
            found: dict[str, list[float]] = defaultdict(list)
            for film in films:
                for name, values in search_film(film, model, windows, root / "cache").items():
                    found[prefix + name] += values
            return {name: sum(values) / len(values) for name, values in found.items()}

        if options.split == "val":
            rows = []
            for seconds in options.seconds or [WINDOWS.seconds]:
                for share in options.overlap or [WINDOWS.overlap_seconds / WINDOWS.seconds]:
                    found = figures_of(WindowsConfig(seconds=seconds, overlap_seconds=share * seconds,
                                                     whole_seconds=WINDOWS.whole_seconds))
                    rows.append((seconds, share * seconds, *found.values()))
            print(table(["window s", "overlap s", *found], rows))
            return
        known: dict[str, list[float]] = defaultdict(list)
        for number, film in enumerate(films):
            for name, values in search_clips(film, model, root / f"clips-{number}").items():
                known[name] += values
        figures = {"films": len(films), "clips": sum(len(film.clips) for film in films),
                   "queries": sum(len(queries) for film in films for queries in film.queries.values()),
                   **figures_of(WINDOWS), **figures_of(BEFORE, "before_"),
                   **{name: sum(values) / len(values) for name, values in known.items()},
                   **measure_indexing(films, options.model, root)}
    print(table(["figure", "value"], figures.items()))
    print(write_result("long_videos", figures, options.quick))


if __name__ == "__main__":
    main()
