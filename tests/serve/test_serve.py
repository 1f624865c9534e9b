"""The search page: a real server, real video files, and where there is one a real browser."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from io import BytesIO

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from search_world import tiny_model, write_video
from serve_world import served

from hcmi.cli import main
from hcmi.search import Retriever, hit_record

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
GREYS = (60, 160, 240)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folder with model/, videos/ and a cache."""
    root = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(root / "model")
    for grey in GREYS:
        write_video(root / "videos" / f"g{grey}.mp4", grey, seconds=4.0)
    return root


@pytest.fixture(scope="module")
def retriever(world):
    return Retriever.from_folder(world / "videos", world / "model", cache=world / "cache")


@pytest.fixture(scope="module")
def page(retriever):
    with served(retriever) as address, httpx.Client(base_url=address) as client:
        yield client


def id_of(retriever, name: str) -> str:
    [row] = [clip for clip in retriever.index.clips(retriever.index.live_rows()) if clip.path.endswith(name)]
    return row.video_id


def test_page_says_it_in_one_line_when_the_system_does_not_let_it_read(retriever, tmp_path, monkeypatch):
    monkeypatch.setattr(retriever, "search", lambda *_, **__: tmp_path.read_bytes())
    with served(retriever) as address:
        answer = httpx.get(f"{address}/api/search", params={"q": "a red ring"})
    assert (answer.status_code, answer.json()) == (503, {"error": f"{tmp_path}: need to read it, got: Is a directory. "
                                                                  "Move away the folder in its place."})


def test_page_answers_from_memory_when_the_system_does_not_let_it_read_the_index(world, tmp_path):
    retriever = Retriever.from_folder(world / "videos", world / "model", cache=tmp_path / "cache")
    [index] = (tmp_path / "cache").glob("*/index/index.json")
    index.unlink()
    index.mkdir()
    with served(retriever) as address:
        assert httpx.get(f"{address}/api/search", params={"q": "a red ring"}).json()["hits"] != []


def test_search_gives_what_the_retriever_finds(page, retriever):
    found = page.get("/api/search", params={"q": "a red ring", "top": 2}).json()
    needed = [hit_record(hit) for hit in retriever.search("a red ring", 2)]
    assert [{name: hit[name] for name in needed[0]} for hit in found["hits"]] == needed
    assert all(hit["here"] and hit["file"] == os.path.basename(hit["path"]) for hit in found["hits"])
    assert found["seconds"] > 0


def test_search_takes_filters_and_another_video(page, retriever):
    assert page.get("/api/search", params={"q": "ring", "min_seconds": 60}).json()["hits"] == []
    assert page.get("/api/search", params={"q": "ring", "tag": "place=sea"}).json()["hits"] == []
    noted = page.get("/api/search", params={"q": "a splendid ring"}).json()
    assert noted["notes"] == ["left out, since no training caption has them: splendid."]
    part = page.get("/api/search", params={"q": "a red ring", "part": 1}).json()["hits"]
    assert [hit["score"] for hit in part] == [hit.score for hit in retriever.search("a red ring", part=True)]
    own = id_of(retriever, "g160.mp4")
    alike = page.get("/api/search", params={"like": own}).json()["hits"]
    assert [hit["video_id"] for hit in alike] == [hit.video_id for hit in retriever.similar(own)]


def test_explain_gives_what_the_retriever_explains(page, retriever):
    hit = retriever.search("a red ring", 2)[1]
    found = page.get("/api/explain", params={"q": "a red ring", "top": 2, "video_id": hit.video_id}).json()
    assert found == json.loads(json.dumps(retriever.explain("a red ring", hit).record()))


@pytest.mark.parametrize(("path", "status", "message"), [
    ("/api/search", 400, "query: need some words, got none"),
    ("/api/search?q=%01", 400, "need readable text"),
    ("/api/search?q=ring&top=0", 400, "top: need 1 to 1000, got 0"),
    ("/api/search?q=ring&top=1.5", 400, "top: need a whole number, got '1.5'"),
    ("/api/search?q=ring&max_seconds=nan", 400, "max_seconds: need a number, got 'nan'"),
    ("/api/search?q=ring&tag=place", 400, "tag: need NAME=VALUE, got 'place'"),
    ("/api/search?like=nobody", 404, "need the video_id of an indexed video"),
    ("/api/explain?q=ring&video_id=nobody", 404, "need one of the answers to a query"),
    ("/video/nobody", 404, "need the video_id of an indexed video"),
    ("/frame/nobody", 404, "need the video_id of an indexed video"),
])
def test_page_says_what_is_wrong_in_one_line(page, path, status, message):
    answer = page.get(path)
    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("path", ["/video/..%2F..%2Fetc%2Fpasswd", "/..%2Fapp.py", "/../app.py", "/static/page.js"])
def test_page_serves_nothing_but_its_files_and_indexed_videos(page, path):
    assert page.get(path).status_code == 404


def test_video_comes_in_ranges(page, retriever, world):
    path = f"/video/{id_of(retriever, 'g60.mp4')}"
    whole = (world / "videos/g60.mp4").read_bytes()
    part = page.get(path, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-type"] == "video/mp4"
    assert page.get(path).content == whole


def test_frame_is_the_middle_one_of_the_moment(page, retriever):
    """The file is darker by 2 each frame, 8 frames a second: number 17 is shown at 2.1 s."""
    answer = page.get(f"/frame/{id_of(retriever, 'g240.mp4')}", params={"start_s": 2.1, "end_s": 2.2})
    with Image.open(BytesIO(answer.content)) as picture:
        assert abs(np.asarray(picture).mean() - (240 - 2 * 17)) < 3


def test_requests_by_another_name_are_refused(page):
    """A web site that points a name of its own at 127.0.0.1 must not read the visitor's videos."""
    assert page.get("/api/about", headers={"host": "evil.example"}).status_code == 400
    assert page.get("/").headers["content-security-policy"].startswith("default-src 'self'")


def test_files_are_served_while_a_search_takes_long(retriever, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_, **__):
        begun.set()
        go_on.wait(60)
        return []

    monkeypatch.setattr(retriever, "search", slow)
    with served(retriever) as address, httpx.Client(base_url=address, timeout=60) as client:
        asking = threading.Thread(target=client.get, args=("/api/search?q=ring",))
        asking.start()
        assert begun.wait(60)
        assert client.get(f"/video/{id_of(retriever, 'g60.mp4')}").status_code == 200
        assert client.get("/page.js").status_code == 200
        go_on.set()
        asking.join()


def test_page_says_so_when_a_video_is_gone_or_broken(tmp_path, world):
    for name in ("gone", "broken"):
        write_video(tmp_path / "videos" / f"{name}.mp4", {"gone": 80, "broken": 120}[name])
    retriever = Retriever.from_folder(tmp_path / "videos", world / "model", cache=tmp_path / "cache")
    (tmp_path / "videos/gone.mp4").unlink()
    (tmp_path / "videos/broken.mp4").write_bytes(b"not a video")
    with served(retriever) as address, httpx.Client(base_url=address, timeout=60) as client:
        hits = client.get("/api/search", params={"q": "ring"}).json()["hits"]
        assert {hit["file"]: hit["here"] for hit in hits} == {"gone.mp4": False, "broken.mp4": True}
        assert "no longer on disk" in client.get(f"/video/{id_of(retriever, 'gone.mp4')}").json()["error"]
        broken = client.get(f"/frame/{id_of(retriever, 'broken.mp4')}")
        assert broken.status_code == 404
        assert "broken.mp4" in broken.json()["error"]


def test_serve_refuses_in_one_line_when_the_port_is_taken(world, monkeypatch):
    monkeypatch.setenv("HCMI_CACHE", str(world / "cache"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(main, ["serve", "--videos", str(world / "videos"), "--model", str(world / "model"),
                                           "--port", str(port)])
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [result.stderr.strip()]
    assert f"port {port}: need an address this machine can listen on" in result.stderr


def test_serve_stops_quietly_when_interrupted(world):
    command = [sys.executable, "-m", "hcmi.cli", "serve", "--videos", str(world / "videos"), "--model",
               str(world / "model"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "HCMI_CACHE": str(world / "cache"), "PYTHONUNBUFFERED": "1"}) as process:
        address = process.stdout.readline().split()[0]
        assert httpx.get(f"{address}/api/about", timeout=60).json()["videos"] == len(GREYS)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, page):
    """A tab on the page; whatever the page's script complains of fails the test."""
    complaints: list[str] = []
    with browser.new_context(base_url=str(page.base_url)) as context:
        tab = context.new_page()
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        yield tab
    assert [text for text in complaints if "400 (Bad Request)" not in text] == []


def test_typing_plays_the_moment_of_the_first_answer(tab, retriever):
    tab.goto("/")
    tab.fill("#q", "a red ring slides left")
    tab.wait_for_selector(".hit")
    best = retriever.search("a red ring slides left")[0]
    assert best.video_id in tab.locator("video").first.get_attribute("src")
    tab.wait_for_function("at => { const v = document.querySelector('video'); return !v.paused && v.currentTime > at }",
                          arg=best.start_s)
    tab.wait_for_timeout(int(1000 * (best.end_s - best.start_s)) + 500)     # it begins again at the end of the moment
    assert tab.locator("video").first.evaluate("video => video.currentTime") <= best.end_s + 0.5
    assert tab.locator(".time").first.inner_text() == f"{best.start_s:.1f} – {best.end_s:.1f} s"
    assert "q=a+red+ring" in tab.url


def test_typing_is_kept_when_the_server_is_slow_to_tell_about_itself(tab):
    tab.route("**/api/about", lambda route: (tab.wait_for_timeout(1500), route.continue_()))
    tab.goto("/", wait_until="domcontentloaded")
    tab.fill("#q", "a red ring")
    tab.wait_for_selector(".hit")
    assert tab.input_value("#q") == "a red ring"


def test_page_shows_why_and_goes_to_a_frame(tab, retriever):
    tab.goto("/?q=a+red+ring")
    assert tab.input_value("#q") == "a red ring"
    tab.locator(".why").first.click()
    tab.wait_for_selector(".reason table")
    assert tab.locator(".reason tbody th").all_inner_texts() == ["a", "red", "ring", "all words"]
    why = retriever.explain("a red ring", retriever.search("a red ring")[0])
    cells = tab.locator(".reason tbody tr").nth(1).locator("td").all_inner_texts()
    assert cells == [f"{value:.2f}" for value in why.frame_word_TW[:, 1]]
    tab.locator(".reason thead button").last.click()
    tab.wait_for_function("at => document.querySelector('video').currentTime >= at - 0.1", arg=float(why.times_s[-1]))
    tab.locator(".why").first.click()
    assert tab.locator(".reason").first.is_hidden()


def test_back_returns_to_the_answers_before(tab, retriever):
    tab.goto("/?q=a+red+ring")
    first = tab.locator(".hit .file").first
    first.wait_for()
    name = first.inner_text()
    tab.locator(".like").first.click()
    tab.wait_for_url("**/?like=*")
    tab.wait_for_function("name => document.querySelector('.hit .file').textContent !== name", arg=name)
    assert tab.locator(".why").first.is_hidden()
    tab.go_back()
    tab.wait_for_function("name => document.querySelector('.hit .file').textContent === name", arg=name)
    assert tab.input_value("#q") == "a red ring"


def test_a_part_is_asked_for_by_the_box_and_kept_in_the_address(tab, retriever):
    tab.goto("/?q=a+red+ring")
    tab.wait_for_selector(".hit")
    tab.fill("#q", "a splendid ring")
    tab.wait_for_function("() => document.querySelector('#status').textContent.endsWith('has them: splendid.')")
    tab.fill("#q", "a red ring")
    tab.wait_for_url("**/?q=a+red+ring")
    tab.check("[name=part]")
    tab.wait_for_url("**/?q=a+red+ring&part=1")
    hit = retriever.search("a red ring", part=True)[0]
    wanted = f"frame-word {hit.levels['frame_word']:.2f}"
    tab.wait_for_function("told => document.querySelector('.levels').textContent.includes(told)", arg=wanted)
    tab.reload()
    tab.wait_for_selector(".hit")
    assert tab.is_checked("[name=part]")
    assert not tab.evaluate("document.querySelector('#filters').open")
    tab.uncheck("[name=part]")
    tab.wait_for_url("**/?q=a+red+ring")


def test_page_shows_an_error_and_goes_on(tab):
    tab.goto("/?q=ring&top=5000")
    tab.wait_for_selector("#error:not([hidden])")
    assert "need 1 to 1000, got 5000" in tab.inner_text("#error")
    tab.fill("[name=top]", "1")
    tab.wait_for_selector(".hit")
    assert tab.locator(".hit").count() == 1
    assert tab.locator("#error").is_hidden()


def test_page_shows_a_frame_when_the_browser_cannot_play(browser, tmp_path, world):
    """An FFV1 film in Matroska: no browser plays it, PyAV reads it. File names are text, never markup."""
    import av

    path = tmp_path / "videos" / "<b>film<b>.mkv"
    path.parent.mkdir()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    retriever = Retriever.from_folder(tmp_path / "videos", world / "model", cache=tmp_path / "cache")
    with served(retriever) as address, browser.new_context(base_url=address) as context:
        tab = context.new_page()
        tab.goto("/?q=ring")
        tab.wait_for_function("() => document.querySelector('.screen img')?.naturalWidth > 0")
        assert tab.locator(".file").inner_text() == "<b>film<b>.mkv"
        assert tab.locator(".play").is_hidden()
