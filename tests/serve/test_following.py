"""The page answers while its model and index are deleted, copied and replaced, and changes to the new ones."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from search_world import clips, times, video_tokens, write_video
from serve_world import Asking, served, write_pair

from hcmi.errors import SearchIndexError
from hcmi.files import atomic_dir
from hcmi.index import add_videos, remove_videos
from hcmi.search import Retriever
from hcmi.serve.following import FollowingRetriever

QUERY = "a red ring slides left"
MODEL, EXPORT = "models/hcmi", "export"
NUM_OLD, NUM_NEW = 40, 45


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Folders old/, new/ and third/, each with models/hcmi and export/."""
    root = tmp_path_factory.mktemp("pairs")
    video = write_video(root / "film.mp4", 200)
    for seed, (name, count) in enumerate({"old": NUM_OLD, "new": NUM_NEW, "third": NUM_NEW}.items()):
        write_pair(root / name, seed, count, video)
    return root


@pytest.fixture
def project(pairs, tmp_path) -> Path:
    """A folder with models/hcmi and export/ of the old pair."""
    shutil.copytree(pairs / "old", tmp_path / "project")
    return tmp_path / "project"


def opened(folder: Path) -> Retriever:
    return Retriever(folder / MODEL, folder / EXPORT / "index")


def scores(hits) -> dict[str, float]:
    return {hit["video_id"]: hit["score"] for hit in hits}


class Clients(Asking):
    """Request everything that a page answers, repeatedly, until the block ends."""

    def __init__(self, address: str, pairs: Path):
        self.asked = {"search": f"/api/search?q={QUERY}", "like": "/api/search?like=v3", "about": "/api/about",
                      "explain": f"/api/explain?q={QUERY}&video_id=v3&top={NUM_NEW}", "video": "/video/v3"}
        self.address, self.failures, self.versions = address, [], {name: [] for name in self.asked}
        self.known: dict[str, dict[str, object]] = {}
        for name in ("old", "new"):
            retriever = opened(pairs / name)
            why = next(hit for hit in retriever.search(QUERY, NUM_NEW) if hit.video_id == "v3")
            self.known[name] = {
                "search": scores(map(vars, retriever.search(QUERY))), "explain": {"v3": why.score},
                "like": scores(map(vars, retriever.similar("v3"))), "about": {"videos": len(retriever.index)}}
        super().__init__(self.asked)

    def _ask(self, name: str) -> None:
        with httpx.Client(base_url=self.address, timeout=60) as client:
            while not self.stopped:
                answer = client.get(self.asked[name], headers={"range": "bytes=0-9"} if name == "video" else None)
                with self.changed:
                    self.versions[name].append(self._version(name, answer))
                    self.changed.notify_all()

    def _version(self, name: str, answer: httpx.Response) -> str:
        """The pair that an answer comes from."""
        if answer.status_code != (206 if name == "video" else 200):
            self.failures.append((name, answer.status_code, answer.text))
            return "failed"
        if name == "video":
            return "any"
        told = answer.json()
        found = {"search": lambda: scores(told["hits"]), "like": lambda: scores(told["hits"]),
                 "explain": lambda: {told["hit"]["video_id"]: told["hit"]["score"]},
                 "about": lambda: {"videos": told["videos"]}}[name]()
        return next((version for version, known in self.known.items() if found == pytest.approx(known[name], abs=1e-5)),
                    f"neither: {found}")

    def wait(self, rounds: int = 2) -> None:
        """Wait until each client has had `rounds` more answers."""
        with self.changed:
            need = {name: len(seen) + rounds for name, seen in self.versions.items()}
            assert self.changed.wait_for(lambda: all(len(self.versions[name]) >= count
                                                       for name, count in need.items()), timeout=120)

    def wait_for(self, version: str) -> None:
        """Wait until all clients are answered by it."""
        with self.changed:
            assert self.changed.wait_for(lambda: all(seen[-1] in (version, "any") for seen in self.versions.values()
                                                       ), timeout=120), self.versions["search"][-1]


def copied(source: Path, target: Path, pause: Callable[[], None]) -> None:
    """Copy like `cp -r`, file by file; pause when each file is half written, and again when it is complete."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            with open(target / path.relative_to(source), "wb", buffering=0) as file:
                file.write(data[:len(data) // 2])
                pause()
                file.write(data[len(data) // 2:])
            pause()


def checked_out(source: Path, target: Path, pause: Callable[[], None]) -> None:
    """Replace like `dvc checkout`: delete and write one file after the other."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            (target / path.relative_to(source)).unlink()
            pause()
            shutil.copy(path, target / path.relative_to(source))
            pause()


def replaced(source: Path, target: Path, pause: Callable[[], None]) -> None:
    """Replace like a stage."""
    with atomic_dir(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def deleted(source: Path, target: Path, pause: Callable[[], None]) -> None:
    """Delete, as DVC does with an output before its stage runs, unless the output persists."""
    shutil.rmtree(target)


ORDERS = [
    [(deleted, MODEL, "new"), (deleted, EXPORT, "new"), (copied, MODEL, "new"), (copied, EXPORT, "new")],
    [(checked_out, EXPORT, "new"), (checked_out, MODEL, "new")],
    [(replaced, MODEL, "third"), (replaced, EXPORT, "new"), (replaced, MODEL, "new")],
]
MORE_ORDERS = [
    [(deleted, EXPORT, "new"), (deleted, MODEL, "new"), (copied, EXPORT, "new"), (copied, MODEL, "new")],
    [(replaced, MODEL, "new"), (replaced, EXPORT, "new")],
    [(replaced, EXPORT, "new"), (replaced, MODEL, "new")],
    [(checked_out, MODEL, "new"), (checked_out, EXPORT, "new")],
]


def named(steps: list) -> str:
    return ", ".join(f"{Path(what).name} {action.__name__}" for action, what, _ in steps)


@pytest.mark.parametrize("steps", [*ORDERS, *(pytest.param(steps, marks=pytest.mark.slow) for steps in MORE_ORDERS)],
                         ids=named)
def test_every_request_is_answered_by_the_old_or_the_new_pair(project, pairs, steps):
    said: list[str] = []
    with served(opened(project), say=said.append) as address, Clients(address, pairs) as clients:
        for action, what, name in steps:
            clients.wait()
            assert all(set(seen) <= {"old", "any"} for seen in clients.versions.values())
            action(pairs / name / what, project / what, clients.wait)
        clients.wait_for("new")
        clients.wait()
    assert clients.failures == []
    for name, seen in clients.versions.items():
        assert set(seen) == ({"any"} if name == "video" else {"old", "new"})
        assert seen == sorted(seen, reverse=True), "once new, always new"
    fingerprint = opened(pairs / "new").fingerprint[:12]
    assert said[-1] == f"note: model {fingerprint} and its index of {NUM_NEW} videos answer from now on."
    assert len(said) <= 2


def test_page_says_once_that_it_answers_from_memory(project):
    said: list[str] = []
    following = FollowingRetriever(opened(project), said.append)
    before = following.current().search(QUERY)
    for _ in range(3):
        shutil.rmtree(project / EXPORT, ignore_errors=True)
        assert following.current().search(QUERY) == before
        (project / EXPORT / "index").mkdir(parents=True)
        (project / EXPORT / "index/index.json").write_text("{")
        assert following.current().search(QUERY) == before
    assert [line.partition(": need")[0] for line in said] == [f"note: {project / EXPORT / 'index'}"]
    assert said[0].endswith(" Until model and index belong together, the loaded ones answer.")


def test_a_pair_that_does_not_fit_is_tried_once_while_its_files_stay_as_they_are(project, pairs, monkeypatch):
    """A model of gigabytes must not be read again for each request."""
    tried: list[threading.Thread] = []

    def loading(*arguments) -> Retriever:
        tried.append(threading.current_thread())
        return Retriever(*arguments)

    monkeypatch.setattr("hcmi.serve.following.Retriever", loading)

    def tries(following: FollowingRetriever) -> int:
        for _ in range(3):
            following.current()
            for thread in tried:
                thread.join()
        return len(tried)

    following = FollowingRetriever(opened(project))
    replaced(pairs / "third" / MODEL, project / MODEL, lambda: None)
    assert tries(following) == 0        # the index is still the old model's
    replaced(pairs / "new" / EXPORT, project / EXPORT, lambda: None)
    assert tries(following) == 1
    os.utime(project / MODEL / "config.json")
    assert tries(following) == 2
    weights = project / MODEL / "model.safetensors"
    before = weights.stat()
    weights.write_bytes((pairs / "old" / MODEL / "model.safetensors").read_bytes())
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))      # as `cp -p` would
    assert (weights.stat().st_size, tries(following)) == (before.st_size, 3)
    replaced(pairs / "new" / MODEL, project / MODEL, lambda: None)
    assert tries(following) == 4
    assert len(following.current().index) == NUM_NEW


def test_next_request_finds_added_videos_and_no_removed_ones(project):
    following = FollowingRetriever(opened(project))
    assert len(following.current().index) == NUM_OLD
    add_videos(project / EXPORT / "index", clips(["late"]), [(video_tokens(1, np.random.default_rng(9)), times(1))])
    assert len(following.current().index) == NUM_OLD + 1
    assert "late" in [hit.video_id for hit in following.current().search(QUERY, NUM_OLD + 1)]
    remove_videos(project / EXPORT / "index", ["late"])
    assert len(following.current().index) == NUM_OLD


def test_nothing_is_read_from_the_folders_once_they_are_loaded(project):
    remove_videos(project / EXPORT / "index", ["v5"])
    add_videos(project / EXPORT / "index", clips(["late"]), [(video_tokens(1, np.random.default_rng(9)), times(1))])
    retriever = opened(project).as_loaded()
    shutil.copytree(project, project.with_name("kept"))
    shutil.rmtree(project)
    kept = opened(project.with_name("kept"))
    for ask in (lambda r: r.search(QUERY, 41), lambda r: r.search(QUERY, tags={"place": "wood"}, max_seconds=6),
                lambda r: r.similar("late"), lambda r: r.rank_captions("v3"),
                lambda r: r.explain(QUERY, r.search(QUERY)[0]).record(), lambda r: r.video("v7")[1],
                lambda r: r.query_notes("a splendid ring")):
        assert ask(retriever) == ask(kept)
    assert "v5" not in [hit.video_id for hit in retriever.search(QUERY, 41)]


def test_folder_of_videos_is_still_searched_when_cache_and_model_are_deleted(pairs, tmp_path):
    shutil.copytree(pairs / "old" / MODEL, tmp_path / "model")
    write_video(tmp_path / "videos/film.mp4", 120)
    retriever = Retriever.from_folder(tmp_path / "videos", tmp_path / "model", cache=tmp_path / "cache")
    following = FollowingRetriever(retriever)
    before = following.current().search(QUERY)
    shutil.rmtree(tmp_path / "model")
    shutil.rmtree(tmp_path / "cache")
    assert following.current().search(QUERY) == before != []


def test_retriever_without_a_page_says_what_is_wrong_with_its_index(project, pairs):
    retriever = opened(project)
    replaced(pairs / "new" / EXPORT, project / EXPORT, lambda: None)
    with pytest.raises(SearchIndexError, match="need an index made by this model"):
        retriever.search(QUERY)
    shutil.rmtree(project / EXPORT)
    with pytest.raises(SearchIndexError, match=r"need a search index, got no index\.json"):
        retriever.search(QUERY)


def test_serve_takes_up_the_new_pair_without_a_restart(project, pairs):
    """`hcmi serve` with its default folders."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen([sys.executable, "-m", "hcmi.cli", "serve", "--port", "0"], cwd=project, env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            with Clients(process.stdout.readline().split()[0], pairs) as clients:
                for step in (deleted, replaced):
                    clients.wait()
                    for what in (MODEL, EXPORT):
                        step(pairs / "new" / what, project / what, clients.wait)
                clients.wait_for("new")
        finally:
            process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert clients.failures == []
    assert (process.returncode, errors) == (0, "")
    assert [line.split(":")[0] for line in said.splitlines()] == ["note", "note"]


def test_hub_is_not_asked_for_a_trained_model_whose_folder_is_gone(project, pairs, monkeypatch):
    """A path such as runs/first looks like a name there while nothing here has it."""
    (project / "models").rename(project / "runs")
    monkeypatch.chdir(project)
    asked: list[str] = []
    monkeypatch.setattr("hcmi.model.checkpoint_files.HfApi", lambda: SimpleNamespace(
        model_info=lambda name, **_: asked.append(name)))
    said: list[str] = []
    following = FollowingRetriever(Retriever("runs/hcmi", "export/index"), said.append)
    shutil.rmtree(project / "runs")
    shutil.rmtree(project / "export")
    shutil.copytree(pairs / "new/export", project / "export")
    following.current()
    assert following._loader is not None
    following._loader.join()
    assert "need config.json, found none" in said[0]
    assert asked == []
