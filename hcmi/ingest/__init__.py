"""New videos become searchable: `add` takes them in, has them judged, and fills the index of the served release."""

from hcmi.ingest.encode import decoded_clips
from hcmi.ingest.fill import fill, missing_batches
from hcmi.ingest.stage import add, added_text

__all__ = ["add", "added_text", "decoded_clips", "fill", "missing_batches"]
