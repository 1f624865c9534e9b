"""The folder of releases: complete releases alone, and a link that always points at one."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hcmi.errors import MachineError, ReleaseError
from hcmi.files import lock
from hcmi.releases import Release, Releases, releases_text, served_paths


def add(releases: Releases, text: str) -> str:
    with releases.add(releases.next_version({})) as staged:
        (staged.folder / "release.json").write_text(text)
    return releases.all()[-1].version


@pytest.fixture
def releases(tmp_path) -> Releases:
    found = Releases(tmp_path / "releases")
    for number in range(11):
        add(found, f'{{"number": {number}}}')
    return found


def test_versions_are_numbers_in_order_and_are_not_used_again(releases):
    assert [release.version for release in releases.all()] == [f"v{number}" for number in range(1, 12)]
    assert releases.get("v10").record == {"number": 9}
    assert releases.current() is None
    assert served_paths(releases.root) is None
    assert Releases(releases.root / "none").all() == []


@pytest.mark.parametrize(("tagged", "version"), [
    ({}, "v12"), ({"v11": True}, "v12"), ({"v14": False}, "v15"), ({"v14": True, "v15": False}, "v14"),
    ({"v12": True, "v13": True}, "v13")])
def test_version_of_another_machine_is_used_for_the_same_release_alone(releases, tagged, version):
    assert releases.next_version(tagged) == version


def test_a_release_that_is_not_finished_is_not_there(releases):
    def fail() -> None:
        with releases.add(releases.next_version({})) as staged:
            (staged.folder / "release.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(releases.all()) == 11
    assert sorted(path.name for path in releases.root.iterdir() if path.name.startswith(".")) == []


def test_served_release_is_found_through_its_link_and_by_its_own_folder(releases):
    releases.serve("v3")
    assert releases.current() == Release(releases.root / "v3")
    assert served_paths(releases.root) == (str(releases.root / "current/model"),
                                           str(releases.root / "current/export/index"))
    assert Release(releases.root / "current").version == "v3"
    kept = releases.current()
    releases.serve("v4")
    assert (kept.version, releases.current().version) == ("v3", "v4")


@pytest.mark.parametrize("name", ["v12", "v0", "current", "../v1", "v1/..", ""])
def test_other_names_are_refused_and_the_served_release_stays(releases, name):
    releases.serve("v2")
    with pytest.raises(ReleaseError, match="need a release called"):
        releases.serve(name)
    assert releases.current().version == "v2"


def test_link_always_points_at_a_release_while_it_is_replaced(releases):
    releases.serve("v1")
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(Path(os.path.realpath(releases.root / "current")).name)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(300):
        for version in ("v2", "v3"):
            releases.serve(version)
    stop.set()
    reader.join()
    assert seen <= {"v1", "v2", "v3"}


def test_a_wait_for_another_writer_is_said(releases):
    with lock(releases.root / ".lock"):
        waiting = subprocess.Popen([sys.executable, "-m", "hcmi", "rollback", "v3", "--releases", str(releases.root)],
                                   cwd=releases.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert waiting.stderr.readline() == (
            f"{releases.root}: another command adds or serves a release; waiting for its end\n")
    assert waiting.communicate() == ("rolled back v3: Rolled back to v3.\n", "")


def test_withdrawn_releases_and_batches_are_remembered(releases):
    release = releases.get("v2")
    releases.withdraw(release, "Rolled back to v1.")
    assert release.withdrawn["why"] == "Rolled back to v1."
    releases.reinstate(release)
    assert release.withdrawn is None
    for content in ("a", "b", "a"):
        release.note_batch(content)
    assert release.batches == ["a", "b"]


def test_broken_release_is_said_in_one_line(releases):
    (releases.root / "v2/release.json").write_text("{")
    with pytest.raises(ReleaseError, match=r"v2/release\.json: need a complete release, got none that can be read"):
        _ = releases.get("v2").record
    assert releases_text([]) == "No release yet. `hcmi promote` makes one of the trained model."


def test_a_folder_that_is_put_there_while_a_release_is_made_stays(releases):
    mine = releases.root / "v12"

    def make() -> None:
        with releases.add("v12") as staged:
            (staged.folder / "release.json").write_text("{}")
            mine.mkdir()
            (mine / "mine.txt").touch()

    with pytest.raises(MachineError, match=r"v12: need to write it, got: File exists\. Move away"):
        make()
    assert [path.name for path in mine.iterdir()] == ["mine.txt"]
    assert [path.name for path in releases.root.iterdir() if path.name.startswith(".")] == []
    assert releases.next_version({}) == "v13"
