"""One retriever, index or tokenizer asked by many threads and by forked children; how many threads one query takes."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from search_world import clips, searchable_model, times, video_tokens

from hcmi.index import Filter, SearchIndex, add_videos, create_index, model_card, remove_videos
from hcmi.model.processor import HcmiProcessor
from hcmi.runtime import one_thread
from hcmi.search import Retriever

QUERY = "a red ring slides left"
QUERIES = (QUERY, "a blue square", "a green ring grows " * 20, "splendid red square slides right")
SEA, WOOD = {"place": "sea"}, {"place": "wood"}
DEADLINE_S = 250


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Folder with model/ and index/ of 80 videos."""
    root = tmp_path_factory.mktemp("world")
    model = searchable_model()
    model.save_pretrained(root / "model")
    create_index(root / "index", model_card(model))
    add_videos(root / "index", clips([f"v{n}" for n in range(80)]), [(video_tokens(80, np.random.default_rng(0)),
                                                                      times(80))])
    return root


@pytest.fixture
def own(world, tmp_path) -> Retriever:
    """A retriever over an index that the test may change."""
    model = searchable_model()
    create_index(tmp_path / "index", model_card(model))
    add_videos(tmp_path / "index", clips([f"v{n}" for n in range(80)]), [(video_tokens(80, np.random.default_rng(0)),
                                                                          times(80))])
    return Retriever(model, tmp_path / "index")


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns after a microsecond instead of five thousand."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(calls: list[Callable[[], object]], rounds: int) -> list[list[object]]:
    """What each of `calls`, in a thread of its own, gives in each of its rounds; all begin together."""
    begin, found = threading.Barrier(len(calls)), [[] for _ in calls]

    def ask(number: int) -> None:
        begin.wait()
        for _ in range(rounds):
            try:
                found[number].append(calls[number]())
            except Exception as error:  # noqa: BLE001  an answer like any other: the test compares it
                found[number].append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def interrupted(monkeypatch, owner: object, name: str, between: Callable[[], object]) -> None:
    """Before the next call of `owner.name` another thread does all of `between`."""
    original = getattr(owner, name)

    def first(*args, **kwargs):
        monkeypatch.setattr(owner, name, original)
        other = threading.Thread(target=between)
        other.start()
        other.join()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, first)


# the index

class Interrupted(Filter):
    """A filter whose first comparison is interrupted by what another thread does."""

    between: ClassVar[list[Callable[[], object]]] = []

    def __eq__(self, other) -> bool:
        while self.between:
            thread = threading.Thread(target=self.between.pop())
            thread.start()
            thread.join()
        return isinstance(other, Filter) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(self.tags)


def test_candidates_pass_the_own_filter_when_another_thread_asks_with_another(world):
    index = SearchIndex.open(world / "index")
    query_D = index.segments[0].store.vectors(slice(0, 1))[0]
    wood, sea = Interrupted((("place", "wood"),)), Filter((("place", "sea"),))
    assert {row % 2 for row in index.candidates(query_D, 50, wood)} == {1}
    Interrupted.between.append(lambda: index.candidates(query_D, 50, sea))
    assert {row % 2 for row in index.candidates(query_D, 50, wood)} == {1}      # by the filter that was kept
    assert Interrupted.between == []


def test_threads_get_what_they_would_get_alone_when_they_ask_at_once(world, hasty):
    retriever = Retriever(world / "model", world / "index")
    calls: list[Callable[[], object]] = [
        lambda: retriever.search(QUERIES[0], tags=SEA), lambda: retriever.search(QUERIES[1], tags=WOOD),
        lambda: retriever.search(QUERIES[2], top=3), lambda: retriever.similar("v7", tags=WOOD),
        lambda: [retriever.search(QUERIES[3]), retriever.query_notes(QUERIES[3])],
        lambda: retriever.rank_captions("v3", list(QUERIES)),
        lambda: retriever.explain(QUERY, retriever.search(QUERY)[0]).record()]
    alone = [call() for call in calls]
    for number, found in enumerate(in_threads(calls, rounds=25)):
        assert [answer for answer in found if answer != alone[number]] == []


@pytest.mark.parametrize("at", ["candidates", "tokens", "clips", "times"])
def test_an_answer_is_of_one_state_of_the_index_when_it_changes_meanwhile(own, monkeypatch, at):
    """Another thread removes half of the videos and searches, between two steps of this one's search."""
    before = own.search(QUERY)
    kept = Retriever(own.model, own.index.folder).as_loaded()

    def change() -> None:
        remove_videos(own.index.folder, [f"v{n}" for n in range(40)])
        own.search(QUERY)

    interrupted(monkeypatch, own.index, at, change)
    assert own.search(QUERY) == before
    assert kept.search(QUERY) == before
    assert {int(hit.video_id[1:]) // 40 for hit in own.search(QUERY)} == {1}


def test_explain_tells_of_one_state_of_the_index_when_it_changes_meanwhile(own, monkeypatch):
    hit = own.search(QUERY)[0]
    before = own.explain(QUERY, hit).record()

    def change() -> None:
        remove_videos(own.index.folder, [hit.video_id])
        own.search(QUERY)

    interrupted(monkeypatch, own.index, "tokens", change)
    assert own.explain(QUERY, hit).record() == before


# the tokenizer

def test_texts_are_cut_and_padded_as_ever_when_other_threads_ask_about_words(hasty):
    processor = HcmiProcessor.from_captions(["a red ring slides left", "then a blue ring grows"] * 3, 400, 12, 16)
    long = "a red ring " * 30
    calls: list[Callable[[], object]] = [
        lambda: [tensor.tolist() for tensor in processor.texts([long, "a red ring"])],
        lambda: processor.known(long), lambda: len(processor.tokens(long)),
        lambda: [tensor.tolist() for tensor in processor.texts(["a watch", "a red ring grows"])]]
    alone = [call() for call in calls]
    for number, found in enumerate(in_threads(calls, rounds=250)):
        assert [answer for answer in found if answer != alone[number]] == []


# forked children

CHILDREN = """
import faulthandler, multiprocessing, os, sys, threading
import numpy as np
import torch
sys.path.insert(0, {tests!r})
from search_world import clips, times, searchable_model, video_tokens
import hcmi.index
from hcmi.index import add_videos
from hcmi.search import Retriever

def in_child(ask):
    child = os.fork()
    if child == 0:
        try:
            faulthandler.dump_traceback_later({deadline}, exit=True)
            os._exit(0 if ask() == expected else 2)
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def in_thread(ask):
    found = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()
    return found[0]

def tell(name, code):
    print(name, code, flush=True)
    if code:
        sys.exit()

retriever = Retriever({root!r} + "/model", {root!r} + "/index")
expected = {expected!r}
def first(query={query!r}):
    return retriever.search(query)[0].video_id

tell("before any search", in_child(first))
assert first() == expected
tell("after a search", in_child(first))
tell("after a child", in_child(first))
tell("from a thread", in_thread(lambda: in_child(first)))
tell("in a thread of the child", in_child(lambda: in_thread(first)))
with multiprocessing.get_context("fork").Pool(2) as pool:
    tell("pool", pool.map_async(first, [{query!r}] * 4).get({deadline}) != [expected] * 4)

def captions():
    return first() if retriever.rank_captions("v3") else None
captions()
tell("many captions", in_child(captions))

model = searchable_model()
def encode():
    with torch.inference_mode():
        model.encode_videos(torch.rand(4, 6, 3, 16, 16), torch.ones(4, 6, dtype=torch.bool))
    return expected
encode()
tell("videos", in_child(encode))

hcmi.index.segment.HNSW_ROWS = 500
def add():
    made = clips(["new" + str(number) for number in range(600)])
    add_videos({root!r} + "/changing", made, [(video_tokens(600, np.random.default_rng(7)), times(600))])
    return expected if len(Retriever({root!r} + "/model", {root!r} + "/changing").search({query!r})) else None
add()
tell("a changed index", in_child(add))
"""
CASES = ("before any search", "after a search", "after a child", "from a thread", "in a thread of the child", "pool",
         "many captions", "videos", "a changed index")


def test_forked_children_answer_as_their_parent_does(world):
    """A child has none of the threads that torch and FAISS share work with, and waited for them for ever."""
    create_index(world / "changing", model_card(searchable_model()))
    program = CHILDREN.format(tests=str(Path(__file__).parent), root=str(world), deadline=60, query=QUERY,
                              expected=Retriever(world / "model", world / "index").search(QUERY)[0].video_id)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S,
                          check=False)
    assert done.stdout.splitlines() == [f"{case} {False if case == 'pool' else 0}" for case in CASES], done.stderr


# how many threads one query takes

ALONE = """
import os, sys, threading
import torch
torch.set_num_threads(2)
from hcmi.search import Retriever

def others_ns():
    own, spent = str(threading.get_native_id()), 0
    for number in os.listdir("/proc/self/task"):
        if number != own:
            spent += int(open(f"/proc/self/task/{{number}}/schedstat").read().split()[0])
    return spent

retriever = Retriever({root!r} + "/model", {root!r} + "/index")
def ask():
    hit = retriever.search("a red ring slides left")[0]
    retriever.similar(hit.video_id)
    retriever.explain("a red ring slides left", hit)
ask()
x = torch.rand(512, 512)
for at in range(50):
    x @ x       # now OpenMP's second thread is there, to wait or to sleep
while True:     # until it sleeps
    before = others_ns()
    threading.Event().wait(0.2)
    if others_ns() == before:
        break
for at in range(20):
    ask()
print(others_ns() - before, torch.get_num_threads())
"""


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="needs Linux's account of each thread")
def test_one_query_is_computed_by_the_thread_that_asks(world):
    """Others would spin: on a busy machine that was 890 ms for a query of 13."""
    done = subprocess.run([sys.executable, "-c", ALONE.format(root=str(world))], capture_output=True, text=True,
                          timeout=DEADLINE_S, check=False)
    assert done.stdout.split() == ["0", "2"], done.stderr


def test_one_thread_concerns_the_calling_thread_alone_and_ends_with_the_block():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
            assert in_threads([torch.get_num_threads], 1) == [[3]]
            with one_thread():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        with suppress(ZeroDivisionError), one_thread():
            _ = 1 / 0
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
