"""The journal gives back what was written, also when a killed run left half a record at its end."""

import pytest

from hcmi.errors import DataError
from hcmi.shards.journal import Journal
from hcmi.video import Decoded


def test_journal_keeps_whole_records_when_its_end_is_torn(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path)
    written = [Decoded((b"a" * number, b"\n"), (0.0, 1.5), "pyav", 2, 4, 3) for number in (1, 0, 300)]
    offsets = [journal.append(f"key{number}", clip) for number, clip in enumerate(written)]
    journal.close()
    whole = path.read_bytes()
    for size in range(offsets[2], len(whole) + 1):
        path.write_bytes(whole[:size])
        journal = Journal(path)
        found = dict(journal.scan())
        expected = 3 if size == len(whole) else 2
        assert [journal.read(found[f"key{number}"]) for number in range(expected)] == written[:expected]
        assert found == {f"key{number}": offsets[number] for number in range(expected)}
        assert journal.append("more", written[0]) == path.stat().st_size - (offsets[1] - 0) + len("key0") - len("more")
        journal.close()
    path.write_bytes(whole.replace(b"aaa", b"aba", 1))
    journal = Journal(path)
    with pytest.raises(DataError, match=r"journal: need the frames that were written, got damaged bytes at"):
        journal.read(dict(journal.scan())["key2"])
    journal.close()
