"""The page follows `releases/current`: no request fails while releases are promoted, rolled back and deleted."""

import shutil
from pathlib import Path

import httpx
import numpy as np
import pytest
from search_world import clips, searchable_model, times, video_tokens, write_video
from serve_world import Asking, served, write_pair

from hcmi.index import add_videos
from hcmi.releases import Releases
from hcmi.search import open_retriever
from hcmi.serve.following import FollowingRetriever

QUERY = "a red ring slides left"
SIZES = {"v1": 40, "v2": 45, "v3": 50}
SEEDS = {"v1": 0, "v2": 1, "v3": 1}         # v3: the model of v2 with another index


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("releases")
    video = write_video(root / "film.mp4", 200)
    for version, count in SIZES.items():
        write_pair(root / "made" / version, SEEDS[version], count, video)
        folder = root / "releases" / version
        (root / "made" / version / "models/hcmi").rename(folder.parent.parent / f"model-{version}")
        folder.mkdir(parents=True)
        (root / f"model-{version}").rename(folder / "model")
        (root / "made" / version / "export").rename(folder / "export")
    return root


@pytest.fixture
def releases(made, tmp_path, monkeypatch) -> Releases:
    """v1, v2 and v3 in the working folder; v1 is served."""
    shutil.copytree(made / "releases", tmp_path / "releases")
    monkeypatch.chdir(tmp_path)
    found = Releases("releases")
    found.serve("v1")
    return found


def followed():
    return open_retriever(None, None, None, "params.yaml", follow=True)


class Clients(Asking):
    """So many clients that ask without a pause; `sizes` holds the last answer of each: the number of videos."""

    def __init__(self, address: str, count: int):
        self.address, self.failures, self.answers = address, [], 0
        self.sizes: dict[int, int] = {}
        super().__init__(range(count))

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self.address, timeout=120) as client:
            while not self.stopped:
                path = ("/api/about", f"/api/search?q={QUERY}&top=100", "/api/search?like=v3&top=100")[number % 3]
                answer = client.get(path)
                with self.changed:
                    self.answers += 1
                    if answer.status_code != 200:
                        self.failures.append((path, answer.status_code, answer.text))
                    else:
                        told = answer.json()
                        self.sizes[number] = told["videos"] if "videos" in told else len(told["hits"])
                    self.changed.notify_all()

    def wait_for(self, size: int) -> None:
        """Wait until every client is answered from an index of so many videos. Nobody is like oneself."""
        with self.changed:
            done = self.changed.wait_for(lambda: len(self.sizes) == len(self.threads) and all(
                got in (size, size - 1) for got in self.sizes.values()), timeout=240)
        assert done, self.sizes


def switch(releases: Releases, count: int, orders: list[str]) -> None:
    said: list[str] = []
    with served(followed(), say=said.append) as address, Clients(address, count) as clients:
        clients.wait_for(SIZES["v1"])
        before = "v1"
        for version in orders:
            releases.serve(version)
            clients.wait_for(SIZES[version])
            if version == "v3":         # retention deletes what is no longer served
                shutil.rmtree(releases.root / before)
            before = version
    assert clients.failures == []
    assert clients.answers > count * len(orders)
    assert sum("answer from now on" in line for line in said) >= 1


def test_no_request_fails_while_releases_are_replaced(releases):
    switch(releases, 4, ["v2", "v1", "v2", "v3"])


@pytest.mark.slow
def test_no_request_of_sixteen_clients_fails_while_releases_are_replaced_many_times(releases):
    switch(releases, 16, ["v2", "v1"] * 10 + ["v2", "v3"])


def test_videos_that_are_added_to_the_release_are_found_by_the_next_request(releases):
    following = FollowingRetriever(followed())
    assert len(following.current().index) == SIZES["v1"]
    releases.serve("v3")
    while len(following.current().index) != SIZES["v3"]:
        pass
    add_videos(releases.current().index, clips(["late"]), [(video_tokens(1, np.random.default_rng(5)), times(1))])
    assert len(following.current().index) == SIZES["v3"] + 1
    assert following.current().fingerprint == searchable_model(1).fingerprint


def test_search_uses_one_release_when_another_takes_its_place_while_it_is_loaded(releases, monkeypatch):
    """Model of the one and index of the other would be refused."""
    import hcmi.search.command as command

    load = command.Retriever
    calls = []

    def interrupted(model, index, *rest):
        if not calls:
            calls.append(releases.serve("v2"))
            return load("releases/v1/model", index, *rest)
        return load(model, index, *rest)

    monkeypatch.setattr(command, "Retriever", interrupted)
    assert len(followed().index) == SIZES["v2"]


def test_index_and_model_that_are_named_are_used_when_there_is_a_release(releases, tmp_path):
    shutil.copytree("releases/v2", tmp_path / "other")
    found = open_retriever("other/model", "other/export/index", None, "params.yaml")
    assert len(found.index) == SIZES["v2"]
