"""What has been decoded but is not in a shard yet, on disk: a run that was killed continues where it stopped.

An append-only file of records. Each is one JSON line and the bytes of the frames. An incomplete last record is cut off.
SQLite made this no shorter and took 0.1 ms more per clip of 64 pixels. It also reports a full disk and a limit on file
sizes as the same error, while this stage says in one line what the system refused.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from hcmi.errors import DataError
from hcmi.shards.shard_file import Jpegs
from hcmi.video import Decoded


class Journal:
    """Clips by frames key, in the file `path`. Only one process may use it: the stage holds a lock."""

    def __init__(self, path: Path):
        self.path = path
        path.touch()
        self._file = open(path, "r+b")      # noqa: SIM115  closed by `close`

    def close(self) -> None:
        self._file.close()

    def scan(self) -> Iterator[tuple[str, int]]:
        """The (key, offset) of every whole record; cuts off what a killed run left half-written after the last one."""
        end, good = os.fstat(self._file.fileno()).st_size, 0
        self._file.seek(0)
        while line := self._file.readline():
            head = _parse(line)
            if head is None or self._file.tell() + sum(head["sizes"]) > end:
                break
            yield head["key"], good
            good = self._file.seek(sum(head["sizes"]), os.SEEK_CUR)
        self._file.truncate(good)

    def append(self, key: str, clip: Jpegs) -> int:
        """Write one record; returns its offset."""
        frames = b"".join(clip.frames)
        head = {"key": key, "sizes": [len(jpeg) for jpeg in clip.frames], "crc32": zlib.crc32(frames),
                "times_s": clip.times_s, "decoder": clip.decoder, "num_decodable": clip.num_decodable,
                "width": clip.width, "height": clip.height}
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(head).encode() + b"\n" + frames)
        self._file.flush()
        return offset

    def read(self, offset: int) -> Jpegs:
        """The clip at an offset from `scan` or `append`.

        Raises: DataError when the bytes on disk are not those that were written.
        """
        self._file.seek(offset)
        head = _parse(self._file.readline())
        frames = self._file.read(sum(head["sizes"])) if head else b""
        if head is None or zlib.crc32(frames) != head["crc32"]:
            raise DataError(f"{self.path}: need the frames that were written, got damaged bytes at {offset}. "
                            "Remove the file and run `hcmi shards` again.")
        jpegs, start = [], 0
        for size in head["sizes"]:
            jpegs.append(frames[start:start + size])
            start += size
        return Decoded(tuple(jpegs), tuple(head["times_s"]), head["decoder"], head["num_decodable"], head["width"],
                       head["height"])


def _parse(line: bytes) -> dict | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except ValueError:
        return None
