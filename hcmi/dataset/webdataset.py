"""WebDataset tars as video2dataset writes them: `<key>.mp4`, `<key>.txt` and `<key>.json` are one sample.

The videos are extracted, since decoders need files. From then on they are treated as those of a `folder`.
"""

import errno
import json
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hcmi.config import DatasetConfig
from hcmi.dataset.build_clips import build_clips, clip_id
from hcmi.dataset.captions import CaptionRow
from hcmi.dataset.near_duplicates import NearDuplicate
from hcmi.errors import DataError, shown
from hcmi.files import atomic_dir, project_path, webdataset_url
from hcmi.progress import track
from hcmi.types import Clip, Skip
from hcmi.video import VIDEO_ENDINGS

LIST = "urls.txt"                               # in a folder: further tars, one path, pattern or URL a line
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")     # first bytes of gzip, bzip2 and xz
END_MARK = bytes(512)                           # an uncompressed tar ends with blocks of zeros
BAD_NAME = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EINVAL)


def iter_webdataset(config: DatasetConfig, generated_dir: Path) -> Iterator[Clip | Skip | NearDuplicate]:
    """The clips of the tars that `config.path` names, in order of video_id, and a Skip for each sample left out.

    The videos are written to `generated_dir`/videos, all of them or none.

    Raises: DataError when `config.path` names no tar, or a tar cannot be opened or transferred as a whole.
    """
    videos = generated_dir / "videos"
    return build_clips(_extract(list_tars(config.path), generated_dir), lambda row: project_path(videos / row.video),
                       config)


def list_tars(path: str) -> list[str]:
    """Paths and URLs of the tars that `path` names.

    `path` is a folder (all tars in it, and what its urls.txt lists), a text file (one path, pattern or URL a line;
    empty lines and those that start with # are ignored), or itself a path, a brace pattern or a URL.

    Raises: DataError when there is none.
    """
    if os.path.isdir(path):
        tars = [str(file) for file in sorted(Path(path).rglob("*")) if file.name.endswith(TAR_ENDINGS)
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and not file.is_dir() and not file.is_fifo()]       # opening a pipe would block
        if (Path(path) / LIST).exists():
            tars += _listed(Path(path) / LIST)
    elif path.endswith(".txt") and os.path.isfile(path):
        tars = _listed(Path(path))
    else:
        tars = _expand(path, "dataset.path")
    if not tars:
        raise DataError(f"{path}: need tars or a {LIST} that lists some, got none. Correct dataset.path.")
    return tars


def _listed(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: need a list of tars in UTF-8, got: {error}. Correct the file.") from error
    return [tar for number, line in enumerate(lines, start=1) if line.strip() and not line.lstrip().startswith("#")
            for tar in _expand(line.strip(), f"{file} line {number}")]


def _expand(pattern: str, where: str) -> list[str]:
    """The URLs of a brace pattern, as webdataset opens them."""
    from webdataset.shardlists import expand_urls

    try:
        urls = expand_urls(pattern)
    except (ValueError, AssertionError) as error:
        raise DataError(f"{where}: need a path, a brace pattern such as {{000..009}}.tar or a URL, got {pattern!r}: "
                        f"{error}. Correct it.") from error
    return [webdataset_url(url) for url in urls]


# --------------------------------------------------------------------------------------------------------- extracting

def _extract(tars: list[str], generated_dir: Path) -> Iterator[CaptionRow | Skip]:
    """Write the videos of each sample and yield their rows; yield a Skip for each sample or video left out.

    annotation.jsonl has a line for each video: its name, its caption, and the tar and the sample it was in.
    """
    with (atomic_dir(generated_dir) as temporary,
          open(temporary / "annotation.jsonl", "w", encoding="utf-8", newline="\n") as annotation):
        for tar in track(tars, "reading tars", unit="tar"):
            for sample in _samples(tar):
                rows = [sample] if isinstance(sample, Skip) else _extract_sample(sample, tar, temporary / "videos")
                for row in rows:
                    if isinstance(row, CaptionRow):
                        line = {"video": row.video, "caption": row.caption, "where": row.where}
                        annotation.write(json.dumps(line) + "\n")     # a caption may hold half a character
                    yield row


def _extract_sample(sample: dict[str, Any], tar: str, videos: Path) -> Iterator[CaptionRow | Skip]:
    """Of each of its videos, the row or a Skip; a sample without a video has one Skip.

    A key ends at the first dot of a name. So `a.1.mp4` and `a.2.mp4` are videos of one sample, and each has its own
    text in `a.1.txt` and `a.2.txt`; a text of the whole sample, `a.txt`, is that of the first video.
    """
    key = sample["__key__"]
    endings = [name for name in sample if f".{name.rpartition('.')[2]}" in VIDEO_ENDINGS]
    for place, ending in enumerate(endings or [""]):
        stem = ending.rpartition(".")[0]
        own = {name: sample[f"{stem}.{name}"] for name in ("txt", "json") if stem and f"{stem}.{name}" in sample}
        if place and not own:
            yield _skip(tar, key, "several_videos", f"{tar}, sample {key}: need one video, or a text for each, got "
                                                    f"{key}.{ending} too. Give it a name of its own before the first "
                                                    f"dot.")
        else:
            rest = {name: part for name, part in sample.items() if not own or name not in ("txt", "json")}
            yield _extract_video({**rest, **own}, ending, tar, videos)


def _extract_video(sample: dict[str, Any], ending: str, tar: str, videos: Path) -> CaptionRow | Skip:
    key = sample["__key__"]
    where = f"{tar}, sample {key}"
    row = _read_row(sample, ending, where)
    if isinstance(row, tuple):
        return _skip(tar, key, *row)
    if shown(row.video) != row.video or any(part in ("", ".", "..") for part in row.video.split("/")):
        return _skip(tar, key, "bad_name", f"{where}: need a key that can name a file, got {key!r}. Rename the sample.")
    target = videos / row.video
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file():
            return _skip(tar, key, "duplicate_key", f"{where}: need each key once, got it again. Rename one of them.")
        target.write_bytes(sample[ending])
    except OSError as error:
        if error.errno not in BAD_NAME:
            raise
        return _skip(tar, key, "bad_name", f"{where}: need a key that can name a file, got: {error.strerror}. Rename "
                                           f"the sample.")
    return row


def _read_row(sample: dict[str, Any], ending: str, where: str) -> CaptionRow | tuple[str, str]:
    """The row of a sample whose video has this ending; or the reason for which it is left out, and the detail."""
    try:
        facts = json.loads(sample.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        return "broken_sample", f"{where}: need JSON in its .json, got: {error}. Write it again."
    if not isinstance(facts, dict):
        return "broken_sample", f"{where}: need an object in its .json, got {type(facts).__name__}. Write it again."
    if not ending:
        why = facts.get("error_message")        # video2dataset writes the samples it could not download, too
        return "no_video", f"{where}: need a video, got none{f' ({why})' if why else ''}. Download it again."
    try:
        caption = " ".join(sample.get("txt", b"").decode("utf-8-sig").split())
    except UnicodeDecodeError as error:
        return "bad_caption", f"{where}: need UTF-8 in its .txt, got the byte 0x{sample['txt'][error.start]:02x}."
    if not caption and isinstance(facts.get("caption"), str):
        caption = " ".join(facts["caption"].split())
    if "\0" in caption:
        return "bad_caption", f"{where}: need text in its caption, got a zero byte. Write it again."
    if not caption:
        return "empty_caption", f"{where}: need a caption in its .txt or in its .json, got none."
    try:
        # video2dataset cuts a video that has `clips`, whose times are then those of the original
        start_s, end_s = (None if "clips" in facts else _seconds(facts.get(name)) for name in ("start", "end"))
    except (ValueError, TypeError, OverflowError):
        times = f"{facts.get('start')!r} to {facts.get('end')!r}"
        return "bad_segment", f"{where}: need start and end in seconds from 0, got {times[:60]}."
    return CaptionRow(f"{sample['__key__']}.{ending}", caption, start_s, end_s, where=where)


def _seconds(value: Any) -> float | None:
    if value is None or value == "":
        return None
    seconds = float(value)
    if not 0 <= seconds < float("inf"):
        raise ValueError(value)
    return seconds


def _skip(tar: str, key: str | None, reason: str, detail: str) -> Skip:
    path = f"{tar}/{key}" if key else tar
    return Skip(clip_id(key or os.path.basename(tar)), shown(path), "dataset", reason, shown(detail))


# ------------------------------------------------------------------------------------------------------------ reading

class _Source:
    """The bytes of a tar, from wherever webdataset reads them; remembers whether they end as a whole tar does."""

    def __init__(self, tar: str):
        from webdataset.gopen import gopen

        try:
            self.stream = gopen(tar)
        except (OSError, ValueError) as error:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
            raise DataError(f"{tar}: need a tar that can be opened, got: {why}. Correct dataset.path.") from error
        self.tar = tar
        self.head = self.tail = b""

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.head = self.head or data[:8]
        self.tail = (self.tail + data)[-len(END_MARK):]
        return data

    @property
    def whole(self) -> bool:
        return self.head.startswith(COMPRESSED) or self.tail == END_MARK

    def finish(self) -> None:
        """Read to the end, and see that the transfer succeeded. Raises: DataError."""
        try:
            while self.read(2**20):
                pass
            self.stream.close()
        except OSError as error:
            status = getattr(self.stream, "status", None)
            why = f"its command ended with status {status}" if status else error
            raise DataError(f"{self.tar}: need the whole tar, got: {why}. Run again, or correct "
                            f"dataset.path.") from error

    def close(self) -> None:
        process = getattr(self.stream, "proc", None)        # of a URL
        if process is not None and process.poll() is None:
            process.kill()
        with suppress(OSError):
            self.stream.close()


def _samples(tar: str) -> Iterator[dict[str, Any] | Skip]:
    """The samples of one tar: `__key__`, and bytes by ending; a Skip for each that is repeated or cut off.

    Raises: DataError when the tar cannot be opened or transferred as a whole.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_expander

    member = ""                         # that is being read
    faults: list[Exception] = []        # what ended the reading
    repeated: dict[str, None] = {}      # keys with a file that comes twice

    def note_member(name: str) -> str:
        nonlocal member
        member = re.sub(r"^(\./+)+", "", name)      # `tar -C FOLDER .` writes ./v.mp4
        return member

    def note_fault(error: Exception) -> bool:
        if not isinstance(error, (tarfile.TarError, OSError, EOFError)):
            raise error
        faults.append(error)
        return False                    # read no further

    def note_repeated(error: Exception) -> bool:
        repeated[base_plus_ext(member)[0]] = None
        return True                     # pass over this member

    source = _Source(tar)
    try:
        files = tar_file_expander([{"url": tar, "stream": source}], handler=note_fault, rename_files=note_member)
        for sample in group_by_keys(files, handler=note_repeated):
            if not (faults and sample["__key__"] == base_plus_ext(member)[0]):
                yield sample
        source.finish()
        if faults and isinstance(faults[0], OSError):
            raise DataError(f"{tar}: need a tar that can be read, got: {faults[0].strerror}. Run again, or correct "
                            f"dataset.path.") from faults[0]
        for key in repeated:
            yield _skip(tar, key, "duplicate_key", f"{tar}, sample {key}: need each file once, got one again.")
        if faults or not source.whole:
            broken = base_plus_ext(member)[0] if faults and member else None
            why = str(faults[0].args[0]).partition(" @ ")[0] if faults else "no end mark"
            yield _skip(tar, broken, "broken_tar", f"{tar}: need a whole tar, got: {why}. What follows "
                                                   f"{member or 'its beginning'} is lost; write the tar again.")
    finally:
        source.close()
