"""Outputs appear whole or not at all, also when the process is killed while it writes."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hcmi.files
from hcmi.errors import ConfigError, MachineError
from hcmi.files import ask_to_write, atomic_dir, atomic_file, cache_folder, folders_with_files, write_json
from hcmi.types import path_of_text, path_text


def write_half(writer, target) -> None:
    """Begin to write, then fail."""
    with writer(target) as path:
        (path if path.is_file() else path / "new.txt").write_text("ne")
        raise RuntimeError("half")


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("named", "folder"), [
    ({"HCMI_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"), ({"XDG_CACHE_HOME": "/b"}, "/b/hcmi"),
    ({"HCMI_CACHE": "", "XDG_CACHE_HOME": ""}, "/home/me/.cache/hcmi"), ({}, "/home/me/.cache/hcmi"),
    ({"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/hcmi")])
def test_caches_are_where_the_environment_says(monkeypatch, named, folder):
    for name in ("HCMI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


def test_atomic_file_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "out.txt"
    with atomic_file(target) as path:
        path.write_text("new")
        assert not target.exists()
        assert path.parent == target.parent     # or the rename would cross file systems
    assert target.read_text() == "new"
    assert names(target.parent) == ["out.txt"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_atomic_file_keeps_the_old_one_when_the_block_fails(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="half"):
        write_half(atomic_file, target)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.txt"]


def test_json_reads_back_as_it_was_and_people_can_read_it(tmp_path):
    content = {"é": 1, "caf\udce9.mp4": [0.5, None]}
    write_json(tmp_path / "out.json", content)
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == content
    assert (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()[1] == ' "é": 1,'


def test_atomic_dir_takes_the_old_ones_place_when_the_block_ends(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with atomic_dir(target) as path:
        (path / "new.txt").write_text("new")
        assert names(target) == ["old.txt"]
    assert names(target) == ["new.txt"]
    assert names(tmp_path) == ["out"]


def test_atomic_dir_keeps_the_old_one_when_the_block_fails(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(RuntimeError, match="half"):
        write_half(atomic_dir, target)
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["out"]


def test_atomic_dir_leaves_nothing_when_there_was_none_and_the_block_fails(tmp_path):
    with pytest.raises(RuntimeError, match="half"):
        write_half(atomic_dir, tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_dir"])
def test_output_is_the_old_one_when_the_process_is_killed(tmp_path, kind):
    target = tmp_path / "out"
    with getattr(sys.modules[__name__], kind)(target) as path:
        (path if kind == "atomic_file" else path / "a.txt").write_text("old")
    child = subprocess.run([sys.executable, "-c", (
        f"import os, signal, sys; from hcmi.files import {kind}\n"
        f"with {kind}(sys.argv[1]) as path:\n"
        f"    (path if path.is_file() else path / 'a.txt').write_text('ne')\n"
        f"    os.kill(os.getpid(), signal.{signal.SIGKILL.name})"), str(target)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert (target if kind == "atomic_file" else target / "a.txt").read_text() == "old"


def test_atomic_dir_sweeps_what_a_killed_writer_left_and_not_what_a_living_one_writes(tmp_path, monkeypatch):
    target = tmp_path / "out"
    subprocess.run([sys.executable, "-c", (
        "import os, sys; from hcmi.files import atomic_dir\n"
        "with atomic_dir(sys.argv[1]): os.kill(os.getpid(), 9)"), str(target)], check=False)
    left, = names(tmp_path)
    with atomic_dir(target):
        assert left in names(tmp_path), "it may be a young one, not yet held"
    monkeypatch.setattr(hcmi.files, "LEFT_SECONDS", 0)
    with atomic_dir(target), atomic_dir(target):
        assert left not in names(tmp_path)
        assert len(names(tmp_path)) == 3        # the first result and the two that are being written
    assert names(tmp_path) == ["out"]


def test_atomic_dir_puts_the_old_one_back_when_the_writer_was_killed_between_two_renames(tmp_path, monkeypatch):
    monkeypatch.setattr(hcmi.files, "LEFT_SECONDS", 0)
    (tmp_path / ".out.abc.old").mkdir()
    (tmp_path / ".out.abc.old" / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="half"):
        write_half(atomic_dir, tmp_path / "out")
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_atomic_dir_puts_the_old_one_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old.txt").write_text("old")
    real = Path.rename

    def fail_to_put_the_new_one(self, to):
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, "broken", str(self))
        return real(self, to)

    monkeypatch.setattr(Path, "rename", fail_to_put_the_new_one)
    message = "out: need to write it, got: Input/output error. Run again."
    with pytest.raises(MachineError, match=message), atomic_dir(target):
        pass
    assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("kind", ["atomic_file", "atomic_dir"])
def test_error_of_reading_another_file_is_not_called_one_of_writing(tmp_path, kind):
    (tmp_path / "in").mkdir()
    with pytest.raises(IsADirectoryError), getattr(sys.modules[__name__], kind)(tmp_path / "out"):
        (tmp_path / "in").read_text()


def test_asking_leaves_nothing_and_makes_nothing(tmp_path):
    (tmp_path / "there").mkdir()
    ask_to_write(folders={tmp_path / "there": "run.json", tmp_path / "a" / "b": None},
                 files=[tmp_path / "c" / "d.json", "e.json"])
    assert names(tmp_path) == ["there"]
    assert names(tmp_path / "there") == []


def test_asking_allows_a_folder_when_it_is_an_earlier_output_or_holds_system_files_alone(tmp_path):
    for name, file in (("ours", "run.json"), ("system", ".DS_Store")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
        ask_to_write(folders={tmp_path / name: "run.json"})


def test_asking_refuses_a_folder_when_a_person_would_lose_files(tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("thesis.txt", "b"):
        (tmp_path / "mine" / name).touch()
    with pytest.raises(ConfigError, match=r"mine: need a folder that may be replaced, which is empty or has run.json, "
                                          r"got one with b and 1 more. Move it away, or name"):
        ask_to_write(folders={tmp_path / "mine": "run.json"})
    assert names(tmp_path / "mine") == ["b", "thesis.txt"]


def test_atomic_file_is_another_file_when_it_replaces_one(tmp_path):
    """A reader that has the old one open still reads all of it."""
    target = tmp_path / "out.txt"
    target.write_text("old")
    with open(target) as reader:
        with atomic_file(target) as path:
            path.write_text("new")
        assert reader.read() == "old"
        assert os.stat(target).st_ino != os.fstat(reader.fileno()).st_ino


PARTS = (b"\\", b"x", b"5c", b"e9", b"\xe9", b"\xc3\xa9", b"/")


@given(st.one_of(st.binary(max_size=12), st.lists(st.sampled_from(PARTS), max_size=8).map(b"".join)))
def test_path_is_text_and_comes_back_when_its_bytes_are_anything(raw):
    path = os.fsdecode(raw)
    assert path_of_text(path_text(path).encode("utf-8").decode()) == path


def test_folder_holds_no_files_when_they_are_those_of_a_system(tmp_path):
    for name in ("a/videos/v.mp4", "mac/.DS_Store", "mac/__MACOSX/v.mp4", "windows/Thumbs.db", "@eaDir/v.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/videos").symlink_to(tmp_path / "a/videos")
    (tmp_path / "link_to_nothing").mkdir()
    (tmp_path / "link_to_nothing/mac").symlink_to(tmp_path / "mac")
    assert [folder.name for folder in folders_with_files(tmp_path)] == ["a", "linked"]
