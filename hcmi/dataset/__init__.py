"""Stage 1: turn a data set (a folder of videos, a published annotation, Scenes) into the manifest.

The manifest has one row a clip: its file, its segment, its captions, its split. Everything that is left out has a line
in skipped.jsonl. Other rooms also read folders and annotations through this one.
"""

from hcmi.dataset.accepted import Accepted, accept, batch_clips, file_contents, is_held_out, read_accepted
from hcmi.dataset.annotations import SOURCES, files_by_bare_name, read_annotations
from hcmi.dataset.build_clips import PROBE_TIMEOUT_S, check_split
from hcmi.dataset.captions import CaptionRow, read_captions
from hcmi.dataset.expected_splits import expected_splits
from hcmi.dataset.folder import NothingUsableError, locate_in, read_folder, table_cells, videos_folder
from hcmi.dataset.manifest import read_manifest, read_manifest_table, sample_captions, write_manifest, write_skipped
from hcmi.dataset.stage import WRITE_VIDEOS, build_dataset
from hcmi.dataset.webdataset import list_tars

__all__ = [
    "PROBE_TIMEOUT_S", "SOURCES", "WRITE_VIDEOS", "Accepted", "CaptionRow", "NothingUsableError", "accept",
    "batch_clips", "build_dataset", "check_split", "expected_splits", "file_contents", "files_by_bare_name",
    "is_held_out", "list_tars", "locate_in", "read_accepted", "read_annotations", "read_captions", "read_folder",
    "read_manifest", "read_manifest_table", "sample_captions", "table_cells", "videos_folder", "write_manifest",
    "write_skipped",
]
