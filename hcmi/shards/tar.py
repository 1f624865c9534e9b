"""The bytes of a shard: one clip's tar members, headers made by hand so that equal input gives equal bytes, fast.

They are what `webdataset.TarWriter(mtime=0)` writes (a test compares); its own way through `tarfile` costs four times
as much, more than encoding a 32-pixel JPEG, and importing it imports torch.
"""

import tarfile
from collections.abc import Sequence

BLOCK = 512
RECORD = 20 * BLOCK         # a tar ends with zeros up to a multiple of this
NAME_BYTES = 100


def _template() -> bytes:
    info = tarfile.TarInfo("")
    info.mode, info.uname, info.gname = 0o444, "bigdata", "bigdata"
    return info.tobuf(tarfile.USTAR_FORMAT)


_TEMPLATE = _template()


def member(name: str, content: bytes) -> bytes:
    """Header, content and padding of one file. `name` in ASCII, at most 100 characters."""
    encoded = name.encode("ascii")
    assert len(encoded) <= NAME_BYTES, f"{name}: need at most {NAME_BYTES} characters, got {len(encoded)}"
    header = bytearray(_TEMPLATE)
    header[:NAME_BYTES] = encoded.ljust(NAME_BYTES, b"\0")
    header[124:135] = b"%011o" % len(content)
    header[148:156] = b" " * 8                          # the checksum is taken with blanks in its place
    header[148:156] = b"%06o\0 " % sum(header)
    return b"".join((header, content, bytes(-len(content) % BLOCK)))


def clip_members(video_id: str, record: bytes, jpegs: Sequence[bytes]) -> tuple[bytes, list[int]]:
    """`<video_id>.json`, then `<video_id>.00.jpg` and so on; and the offset of each file's content."""
    digits = max(2, len(str(len(jpegs) - 1)))
    names = [f"{video_id}.json", *(f"{video_id}.{index:0{digits}d}.jpg" for index in range(len(jpegs)))]
    parts, offsets, position = [], [], 0
    for name, content in zip(names, (record, *jpegs), strict=True):
        parts.append(member(name, content))
        offsets.append(position + BLOCK)
        position += len(parts[-1])
    return b"".join(parts), offsets


def end_of_tar(size_bytes: int) -> bytes:
    """What closes a tar of `size_bytes` of members."""
    return bytes(2 * BLOCK + -(size_bytes + 2 * BLOCK) % RECORD)
