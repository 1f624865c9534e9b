"""Files that were damaged on the disk: the right length, other bytes."""

from pathlib import Path

import pyarrow.parquet as pq


def damage_column(path: Path, number: int) -> None:
    """Flip the bytes of one column of a Parquet file behind the header of its first page."""
    column = pq.ParquetFile(path).metadata.row_group(0).column(number)
    start = column.dictionary_page_offset
    content = bytearray(path.read_bytes())
    for at in range(start + 22, start + column.total_compressed_size):
        content[at] ^= 0xFF
    path.write_bytes(content)
