"""ROOM dataset."""

from hcmi.dataset.annotations import SOURCES, find_videos, read_annotations
from hcmi.dataset.build_clips import VIDEO_ENDINGS
from hcmi.dataset.captions import read_captions
from hcmi.dataset.folder import read_folder
from hcmi.dataset.manifest import iter_manifest, read_manifest, write_manifest, write_skipped
from hcmi.dataset.stage import build_dataset

__all__ = [
    "SOURCES", "VIDEO_ENDINGS", "build_dataset", "find_videos", "iter_manifest",
    "read_annotations", "read_captions", "read_folder", "read_manifest", "write_manifest",
    "write_skipped",
]
