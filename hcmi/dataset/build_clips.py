"""Turn rows of captions into the clips of the manifest: inspect each file once, cut segments, give every video a split.

The rows are kept in a temporary SQLite file, so that a million of them in any order need little memory.
"""

import hashlib
import math
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter

from hcmi.ahead import ahead
from hcmi.config import DatasetConfig, WindowsConfig
from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.near_duplicates import NearDuplicate, near_duplicates
from hcmi.errors import DataError, DecodeError, MachineError, shown
from hcmi.progress import track
from hcmi.types import Clip, Skip, path_of_text, path_text
from hcmi.video import VIDEO_ENDINGS, DecoderPool, ProbeJob, check_length, check_name, cut, is_text, probe_job, sha256

PROBE_TIMEOUT_S = 20.0
LONGEST_ID = 80             # characters, of the 100 that a tar has for a name; longer ids are cut and end in a hash
TABLES = """
    CREATE TABLE videos (name TEXT PRIMARY KEY, path TEXT, split TEXT, place REAL, said TEXT) WITHOUT ROWID;
    CREATE TABLE captions (n INTEGER PRIMARY KEY, name TEXT, start REAL, end REAL, caption TEXT, copy INTEGER,
                           UNIQUE (name, start, end, caption, copy));
    CREATE TABLE unreadable (name TEXT PRIMARY KEY, path TEXT, reason TEXT, detail TEXT) WITHOUT ROWID;
    CREATE TABLE facts (name TEXT PRIMARY KEY, sha256 TEXT, duration REAL, look INTEGER) WITHOUT ROWID;
    CREATE TABLE clips (video_id TEXT PRIMARY KEY, name TEXT, start REAL, end REAL) WITHOUT ROWID;
    CREATE TABLE contents (sha256 TEXT PRIMARY KEY, place REAL, split TEXT, free INTEGER, evaluated TEXT) WITHOUT ROWID;
"""
# Videos of equal bytes have one row: the place of the first name, the split that any of them is given (test before val
# before train), whether none is given, and the path of one that is given val or test.
CONTENTS = """
    INSERT INTO contents SELECT sha256, (SELECT place FROM videos WHERE name = first),
                                CASE WHEN test NOT NULL THEN 'test' WHEN val NOT NULL THEN 'val' ELSE given END,
                                given IS NULL, coalesce(test, val)
    FROM (SELECT sha256, min(name) AS first, max(split) AS given, min(iif(split = 'test', path, NULL)) AS test,
                 min(iif(split = 'val', path, NULL)) AS val
          FROM videos JOIN facts USING (name) WHERE name IN (SELECT name FROM clips) GROUP BY sha256)
"""
LOOKS = """
    SELECT path, coalesce(videos.split, contents.split) AS own, duration, look FROM videos JOIN facts USING (name)
    JOIN contents USING (sha256) WHERE look NOT NULL AND name IN (SELECT name FROM clips) AND own != ? ORDER BY name
"""
TO_THE_END = -1.0           # in the column `end`; SQLite would take two NULLs as different
# SQLite's errors about a disk that is full, broken or not writable; its other errors are bugs.
DISK_ERRORS = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN))


def build_clips(rows: Iterable[CaptionRow | Skip], locate: Callable[[CaptionRow], str], config: DatasetConfig,
                keep_repeats: bool = False, windows: WindowsConfig | None = None
                ) -> Iterator[Clip | Skip | NearDuplicate]:
    """Yield the clips in order of video_id, a Skip for everything left out, and what looks like a copy across splits.

    `rows` may hold Skips, which are passed on. `locate` gives the path of a row's video, whether or not the file
    exists; when it raises a DecodeError the video is left out. A caption that repeats another of the same clip word for
    word is left out unless `keep_repeats`. A row whose caption is None adds no caption to its clip. With `windows`, a
    long video without captions is divided, and each window is a clip.

    A video whose split no row gives gets one by a hash of its name, `config.seed` and the two fractions. Train, test
    and val get at least one video each, in this order, where there are enough. Videos of equal bytes get one split.
    Where the rows give them several, only those of test are used, or else those of val: a model must not be tested on
    what it was trained or chosen on, and the test stays as it is given.

    Raises: DataError when rows contradict each other; and the errors of `rows` and `locate`.
    """
    with _database() as db:
        db.executescript(TABLES)
        yield from _spool(db, rows, locate, config.seed, keep_repeats)
        yield from _inspect(db)
        yield from _join_ends(db)
        if windows is not None:
            yield from _divide(db, windows)
        yield from _cut(db)
        _assign_splits(db, config)
        yield from _drop_leaking(db)
        yield from near_duplicates(db.execute(LOOKS, ("train",)), db.execute(LOOKS, ("test",)))
        yield from _clips(db)


@contextmanager
def _database() -> Iterator[sqlite3.Connection]:
    """A temporary database in an unnamed file in the folder for temporary files."""
    try:
        with closing(sqlite3.connect("")) as db:
            yield db
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in DISK_ERRORS:
            raise
        raise MachineError(f"temporary files: need room for a table of the captions, got: {error}. Free space, or name "
                           f"another folder for them in TMPDIR.") from error


def _skip(name: str, path: str, reason: str, detail: str, video_id: str = "") -> Skip:
    return Skip(video_id or clip_id(name), shown(path), "dataset", reason, shown(detail))


def _spool(db: sqlite3.Connection, rows: Iterable[CaptionRow | Skip], locate: Callable[[CaptionRow], str], seed: int,
           keep_repeats: bool) -> Iterator[Skip]:
    """Fill `videos` and `captions`; yield a Skip for each row or video that is left out."""
    insert = "INSERT OR IGNORE INTO captions (name, start, end, caption, copy) VALUES (?, ?, ?, ?, ?)"
    refused: set[str] = set()
    for number, row in enumerate(rows):
        if isinstance(row, Skip):
            yield row
            continue
        name = path_text(row.video)     # SQLite takes only text
        if name in refused:
            continue
        try:
            path = _note_video(db, name, row, locate, seed)
        except DecodeError as error:
            refused.add(name)
            yield _skip(name, error.path, error.reason, str(error))
            continue
        if problem := _problem(row):
            yield _skip(name, path, *problem)
            continue
        start = round(row.start_s or 0.0, 3)
        end = TO_THE_END if row.end_s is None else round(row.end_s, 3)
        if end != TO_THE_END and end <= start:
            yield _skip(name, path, "bad_segment", f"{row.where}: need a part of a millisecond or more, got "
                                                   f"{row.start_s or 0.0} to {row.end_s}.")
            continue
        if not db.execute(insert, (name, start, end, row.caption, number if keep_repeats else 0)).rowcount:
            yield _skip(name, path, "duplicate_row", f"{row.where}: need a clip's caption once, got it again.")


def _problem(row: CaptionRow) -> tuple[str, str] | None:
    """The reason for which a row is left out, and the detail."""
    if row.caption == "":
        return "empty_caption", f"{row.where}: need a caption, got an empty cell."
    if row.caption is not None and not is_text(row.caption):
        return "bad_caption", f"{row.where}: need a caption of text, got {row.caption[:60]}."
    if not all(time is None or 0 <= time < math.inf for time in (row.start_s, row.end_s)):      # JSON may hold NaN
        return "bad_segment", f"{row.where}: need start and end in seconds from 0, got {row.start_s} to {row.end_s}."
    if row.end_s is not None and row.end_s <= (row.start_s or 0.0):
        return "bad_segment", f"{row.where}: need end after start, got {row.start_s or 0.0:g} to {row.end_s:g}."
    return None


def _note_video(db: sqlite3.Connection, name: str, row: CaptionRow, locate: Callable[[CaptionRow], str], seed: int
                ) -> str:
    """Put the video of a row into `videos`, or the row's split into the video's entry. Returns the path as text.

    Raises: DataError when two rows give the video different splits; DecodeError when it cannot be used.
    """
    select = "SELECT path, split, said FROM videos WHERE name = ?"
    known = db.execute(select, (name,)).fetchone() if is_text(name) else None
    if known is None:
        check_name(row.video)
        path = locate(row)
        check_name(path)
        db.execute("INSERT INTO videos VALUES (?, ?, ?, ?, ?)",
                   (name, path_text(path), row.split, place_of(name, seed), shown(row.where)))
        return path_text(path)
    path, split, said = known
    check_split(row, split, said)
    if row.split and split is None:
        db.execute("UPDATE videos SET split = ?, said = ? WHERE name = ?", (row.split, shown(row.where), name))
    return path


def check_split(row: CaptionRow, split: str | None, said: str) -> None:
    """Raises: DataError when a row gives its video another split than `split`, which the row `said` gives it."""
    if row.split and split and row.split != split:
        raise DataError(f"{row.where}: need one split for all rows of {row.video!r}, got {row.split} here and {split} "
                        f"in {said}. A video in two splits is trained on and tested on; correct one of them.")


def _inspect(db: sqlite3.Connection) -> Iterator[Skip]:
    """Fill `facts` with the duration and hash of each file that can be read; yield a Skip for each that cannot."""
    count = db.execute("SELECT count(*) FROM videos").fetchone()[0]
    with (DecoderPool(0, PROBE_TIMEOUT_S, probe_job) as pool,
          track(total=count, description="looking at videos", unit="video") as bar):
        for job, found in pool.map(_probe_jobs(db, bar)):
            bar.update(1)
            name, digest = job.key
            if isinstance(found, DecodeError):
                yield _skip(name, job.path, found.reason, str(found))
            else:
                facts = name, digest, round(found.duration_s, 6), found.look
                db.execute("INSERT INTO facts VALUES (?, ?, ?, ?)", facts)
    yield from (_skip(*row) for row in db.execute("SELECT name, path, reason, detail FROM unreadable ORDER BY name"))


def _probe_jobs(db: sqlite3.Connection, bar) -> Iterator[ProbeJob]:
    """A job for each file that could be hashed; the others go to the table `unreadable`, however many they are."""
    videos = db.execute("SELECT name, path FROM videos ORDER BY name")
    for name, path, found in ahead(_hash, ((name, path_of_text(path)) for name, path in videos), depth=8, threads=2):
        if isinstance(found, DecodeError):
            bar.update(1)
            db.execute("INSERT INTO unreadable VALUES (?, ?, ?, ?)",
                       (name, path_text(path), found.reason, str(found)))
        else:
            yield ProbeJob((name, found), path)


def _hash(video: tuple[str, str]) -> tuple[str, str, str | DecodeError]:
    """Name, path, and the SHA-256 of the file or what keeps it from being read."""
    name, path = video
    try:
        return name, path, sha256(path)
    except DecodeError as error:
        return name, path, error


def _join_ends(db: sqlite3.Connection) -> Iterator[Skip]:
    """Rows that begin together and last until their video's end, or longer, are one clip; yield a Skip for each caption
    that it then has twice.
    """
    found = db.execute(f"SELECT name, path, start, duration, min(end) FROM captions JOIN facts USING (name) "
                       f"JOIN videos USING (name) WHERE duration > 0 AND (end >= duration OR end = {TO_THE_END}) "
                       f"GROUP BY name, start HAVING min(end) < max(end) ORDER BY name, start").fetchall()
    for name, path, start, duration, end in found:
        others = name, start, duration, end
        which = "WHERE name = ? AND start = ? AND end >= ? AND end != ?"
        db.execute(f"UPDATE OR IGNORE captions SET end = ? {which}", (end, *others))
        for (caption,) in db.execute(f"DELETE FROM captions {which} RETURNING caption", others).fetchall():
            yield _skip(name, path, "duplicate_row", f"{path}: need a clip's caption once, got {shown(caption[:60])!r} "
                                                     f"again from {start:g} s to the end.")


def _divide(db: sqlite3.Connection, windows: WindowsConfig) -> Iterator[Skip]:
    """Replace the row of each long video that has no caption by a row for each window."""
    found = db.execute("SELECT name, path, duration FROM captions JOIN facts USING (name) JOIN videos USING (name) "
                       "GROUP BY name HAVING count(caption) = 0 ORDER BY name").fetchall()
    for name, path, duration in found:
        parts = cut(duration, windows)
        if len(parts) == 1:
            continue
        db.execute("DELETE FROM captions WHERE name = ?", (name,))
        try:
            check_length(path, duration)
        except DecodeError as error:
            yield _skip(name, path, error.reason, str(error))
            continue
        db.executemany("INSERT INTO captions (name, start, end, copy) VALUES (?, ?, ?, 0)",
                       ((name, start, TO_THE_END if end is None else end) for start, end in parts))


def _cut(db: sqlite3.Connection) -> Iterator[Skip]:
    """Fill `clips` with each segment of each readable video that has captions, and a unique video_id for it."""
    found = db.execute("SELECT DISTINCT name, start, end, path, duration FROM captions JOIN facts USING (name) "
                       "JOIN videos USING (name) ORDER BY name, start, end")
    total = db.execute("SELECT count(*) FROM (SELECT DISTINCT name, start, end FROM captions)").fetchone()[0]
    for name, start, end, path, duration in track(found, "cutting clips", total=total, unit="clip"):
        if duration and start >= duration:
            yield _skip(name, path, "too_short", f"{path}: need a clip that starts before the end at {duration:g} s, "
                                                 f"got start {start:g} s. Correct the row.")
            continue
        video_id = clip_id(name, start, end)
        if db.execute("SELECT 1 FROM clips WHERE video_id = ?", (video_id,)).fetchone():
            video_id = f"{video_id}_{_digest(f'{name}/{start}/{end}')}"
        db.execute("INSERT INTO clips VALUES (?, ?, ?, ?)", (video_id, name, start, end))


def place_of(name: str, seed: int) -> float:
    """A number in [0, 1) from a hash of a video's name, to be compared with the fractions of the splits.

    The name is taken in NFC, so that a copy of the videos on another system has the same splits.
    """
    name = unicodedata.normalize("NFC", name)
    return int(hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()[:12], 16) / 16**12


def bare_name(name: str) -> str:
    """A file name without the ending of a video, and without a dot at its end."""
    stem, dot, ending = name.rpartition(".")
    return stem if dot and stem and (not ending or f".{ending.lower()}" in VIDEO_ENDINGS) else name


def clip_id(name: str, start_s: float = 0.0, end_s: float = TO_THE_END) -> str:
    """A readable id of letters, digits, `_` and `-`: the file's name, and the milliseconds of a segment."""
    name = unicodedata.normalize("NFC", name)
    stem = bare_name(name)
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")
    if re.search(r"[^A-Za-z0-9_.\-/ ]", stem) or not plain:
        plain = f"{plain}_{_digest(name)}".strip("_")
    if (start_s, end_s) != (0.0, TO_THE_END):
        plain += f"_{round(start_s * 1000)}-{'end' if end_s == TO_THE_END else round(end_s * 1000)}"
    if len(plain) > LONGEST_ID:
        digest = _digest(f"{name}/{start_s}/{end_s}")
        plain = f"{plain[:LONGEST_ID - 1 - len(digest)]}_{digest}"
    return plain


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _assign_splits(db: sqlite3.Connection, config: DatasetConfig) -> None:
    """Fill `contents` with a split for each content of a file."""
    db.execute(CONTENTS)
    db.execute("UPDATE contents SET split = CASE WHEN place < ? THEN 'test' WHEN place < ? THEN 'val' ELSE 'train' END "
               "WHERE free", (config.test_fraction, config.test_fraction + config.val_fraction))
    wanted = {"train": 1 - config.test_fraction - config.val_fraction, "test": config.test_fraction,
              "val": config.val_fraction}
    for split, fraction in wanted.items():
        counts = dict(db.execute("SELECT split, count(*) FROM contents GROUP BY split").fetchall())
        donors = [name for name in ("train", "val", "test") if counts.get(name, 0) > 1]
        if fraction > 0 and not counts.get(split) and donors:
            db.execute(f"UPDATE contents SET split = ? WHERE sha256 = (SELECT sha256 FROM contents WHERE free AND "
                       f"split IN ({','.join('?' * len(donors))}) ORDER BY place LIMIT 1)", (split, *donors))


def _drop_leaking(db: sqlite3.Connection) -> Iterator[Skip]:
    """Remove the clips of train and val whose bytes are given to a later split too; yield a Skip for each."""
    leaking = db.execute("SELECT video_id, name, path, videos.split, contents.split, evaluated FROM clips JOIN videos "
                         "USING (name) JOIN facts USING (name) JOIN contents USING (sha256) "
                         "WHERE videos.split != contents.split ORDER BY video_id").fetchall()
    for video_id, name, path, own, split, evaluated in leaking:
        db.execute("DELETE FROM clips WHERE video_id = ?", (video_id,))
        detail = (f"{path}: need other videos for {own} than for {split}, got the bytes of {evaluated}. "
                  f"Remove this file, or give both the same split.")
        yield _skip(name, path, "duplicate_video", detail, video_id)


def _clips(db: sqlite3.Connection) -> Iterator[Clip]:
    rows = db.execute("SELECT video_id, path, coalesce(videos.split, contents.split), start, end, duration, sha256, "
                      "caption FROM clips JOIN captions USING (name, start, end) JOIN facts USING (name) "
                      "JOIN videos USING (name) JOIN contents USING (sha256) ORDER BY video_id, n")
    total = db.execute("SELECT count(*) FROM clips").fetchone()[0]
    for head, group in track(groupby(rows, key=itemgetter(slice(0, 7))), "listing clips", total=total, unit="clip"):
        video_id, path, split, start, end, duration, sha256 = head
        end = duration if end == TO_THE_END else min(end, duration) if duration else end
        captions = tuple(row[7] for row in group if row[7] is not None)
        duration_s = round(max(end - start, 0.0), 6)
        yield Clip(video_id, path_of_text(path), split, captions, start, end, duration_s, sha256, {})
