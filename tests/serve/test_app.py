"""The server of the search page: a real server and real video files."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from io import BytesIO

import httpx
import numpy as np
import pytest
import uvicorn
from click.testing import CliRunner
from PIL import Image
from search_world import clips, searchable_model, times, video_tokens, write_video
from serve_world import served

from hcmi.cli import main
from hcmi.index import add_videos, create_index, model_card
from hcmi.search import Retriever, hit_record
from hcmi.serve.app import STATIC, serve


def id_of(retriever, name: str) -> str:
    [row] = [clip for clip in retriever.index.clips(retriever.index.live_rows()) if clip.path.endswith(name)]
    return row.video_id


def test_page_answers_one_line_when_the_system_refuses_to_read(retriever, tmp_path, monkeypatch):
    monkeypatch.setattr(retriever, "search", lambda *_, **__: tmp_path.read_bytes())
    with served(retriever) as address:
        answer = httpx.get(f"{address}/api/search", params={"q": "a red ring"})
    assert (answer.status_code, answer.json()) == (503, {"error": f"{tmp_path}: need to read it, got: Is a directory. "
                                                                  "Move away the folder in its place."})


def test_page_answers_from_memory_when_the_index_cannot_be_read(world, tmp_path):
    retriever = Retriever.from_folder(world / "videos", world / "model", cache=tmp_path / "cache")
    [index] = (tmp_path / "cache").glob("*/index/index.json")
    index.unlink()
    index.mkdir()
    with served(retriever) as address:
        assert httpx.get(f"{address}/api/search", params={"q": "a red ring"}).json()["hits"] != []


def test_search_gives_what_the_retriever_finds(page, retriever):
    found = page.get("/api/search", params={"q": "a red ring", "top": 2}).json()
    needed = json.loads(json.dumps([hit_record(hit) for hit in retriever.search("a red ring", 2)]))
    assert [{name: hit[name] for name in needed[0]} for hit in found["hits"]] == needed
    assert all(hit["here"] and hit["file"] == os.path.basename(hit["path"]) for hit in found["hits"])
    assert found["seconds"] > 0


def test_search_takes_filters_and_another_video(page, retriever):
    assert page.get("/api/search", params={"q": "ring", "min_seconds": 60}).json()["hits"] == []
    none = page.get("/api/search", params={"q": "ring", "tag": "place=sea"}).json()
    assert (none["hits"], none["notes"]) == ([], ["no video has the tag 'place'."])
    noted = page.get("/api/search", params={"q": "a splendid ring"}).json()
    assert noted["notes"] == ["left out, since no training caption has them: splendid."]
    own = id_of(retriever, "g160.mp4")
    alike = page.get("/api/search", params={"like": own}).json()["hits"]
    assert [hit["video_id"] for hit in alike] == [hit.video_id for hit in retriever.similar(own)]


def test_about_offers_only_captions_that_can_be_asked_for(tmp_path):
    model = searchable_model()
    create_index(tmp_path / "index", model_card(model))
    tokens = video_tokens(1, np.random.default_rng(0)), times(1)
    for name, captions in {"short": ("a red ring", "x" * 2700), "long": ("a red ring " * 250,)}.items():
        add_videos(tmp_path / "index", clips([name], captions=captions), [tokens])
    with served(Retriever(model, tmp_path / "index")) as address:
        assert httpx.get(f"{address}/api/about", timeout=60).json()["examples"] == ["a red ring"]


def test_address_of_an_earlier_version_answers_as_without_its_unknown_parameter(page):
    """`part=1` was a box of the page."""
    for path, query in (("/api/search", {"q": "a red ring"}), ("/api/explain", {"q": "a red ring", "video_id": ""})):
        query = {**query, "video_id": page.get("/api/search", params=query).json()["hits"][0]["video_id"]}
        now, old = (page.get(path, params=params).json() for params in (query, {**query, "part": 1}))
        assert {**old, "seconds": 0} == {**now, "seconds": 0}
        assert "error" not in old


def test_explain_gives_what_the_retriever_explains(page, retriever):
    hit = retriever.search("a red ring", 2)[1]
    found = page.get("/api/explain", params={"q": "a red ring", "top": 2, "video_id": hit.video_id}).json()
    record = json.loads(json.dumps(retriever.explain("a red ring", hit).record()))
    assert found.pop("times") == [f"{time:.1f} s" for time in record["times_s"]]
    assert [phrase.pop("time") for phrase in found["phrases"]] == [
        f"{phrase['time_s']:.1f} s" for phrase in record["phrases"]]
    assert found == record


@pytest.mark.parametrize(("path", "status", "message"), [
    ("/api/search", 400, "query: need some words, got none"),
    ("/api/search?q=%01", 400, "need readable text"),
    ("/api/search?q=ring&top=0", 400, "top: need 1 to 1000, got 0"),
    ("/api/search?q=ring&top=1.5", 400, "top: need a whole number, got '1.5'"),
    ("/api/search?q=ring&max_seconds=nan", 400, "max_seconds: need a number from 0, got 'nan'"),
    ("/api/search?q=ring&tag=place", 400, "tag: need NAME=VALUE, got 'place'"),
    ("/api/search?q=ring&tag=a%3D1&tag=a%3D2", 400, "tag: need one value of a, got '1' and '2'"),
    ("/api/search?q=ring&min_seconds=inf", 400, "min_seconds: need a number from 0, got 'inf'"),
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
    """Each frame is darker by 2 than the one before, at 8 frames per second: number 17 is shown at 2.1 s."""
    answer = page.get(f"/frame/{id_of(retriever, 'g240.mp4')}", params={"start_s": 2.1, "end_s": 2.2})
    with Image.open(BytesIO(answer.content)) as picture:
        assert abs(np.asarray(picture).mean() - (240 - 2 * 17)) < 3


def test_requests_by_another_name_are_refused(page):
    """A web site that points its own name at 127.0.0.1 must not read the visitor's videos."""
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


def test_page_says_so_when_a_video_is_missing_or_broken(tmp_path, world):
    for name in ("gone", "broken"):
        write_video(tmp_path / "videos" / f"{name}.mp4", {"gone": 80, "broken": 120}[name])
    retriever = Retriever.from_folder(tmp_path / "videos", world / "model", cache=tmp_path / "cache")
    (tmp_path / "videos/gone.mp4").unlink()
    (tmp_path / "videos/broken.mp4").write_bytes(b"not a video")
    with served(retriever) as address, httpx.Client(base_url=address, timeout=60) as client:
        hits = client.get("/api/search", params={"q": "ring"}).json()["hits"]
        assert {hit["file"]: hit["here"] for hit in hits} == {"gone.mp4": False, "broken.mp4": True}
        gone = client.get(f"/video/{id_of(retriever, 'gone.mp4')}").json()["error"]
        assert "gone.mp4: need the video, got no such file" in gone
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


def test_serve_refuses_in_one_line_a_name_that_no_host_has(world, monkeypatch):
    monkeypatch.setenv("HCMI_CACHE", str(world / "cache"))
    result = CliRunner().invoke(main, ["serve", "--videos", str(world / "videos"), "--model", str(world / "model"),
                                       "--port", "0", "--allow-host", "a*b"])
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1, "hcmi: --allow-host: need a name, or *.NAME for all below it, got 'a*b'. Correct it.")


def test_serve_stops_quietly_when_interrupted(world):
    command = [sys.executable, "-m", "hcmi.cli", "serve", "--videos", str(world / "videos"), "--model",
               str(world / "model"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env={**os.environ, "HCMI_CACHE": str(world / "cache"), "PYTHONUNBUFFERED": "1"}) as process:
        address = process.stdout.readline().split()[0]
        assert httpx.get(f"{address}/api/about", timeout=60).json()["videos"] == 3
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(("name", "status"), [("127.0.0.1", 200), ("videos.example.org", 200), ("evil.example", 400)])
def test_page_answers_to_the_name_of_a_proxy_when_it_is_allowed(retriever, name, status):
    with served(retriever, hosts=("127.0.0.1", "videos.example.org")) as address:
        assert httpx.get(f"{address}/api/about", headers={"host": name}).status_code == status


def test_page_asks_for_relative_addresses_so_that_a_proxy_may_serve_it_below_a_folder():
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?:get\(|fetch\(|src\s*=|href\s*=|url\()\s*[\"'`]?/", text), path.name


def test_page_is_served_on_the_loopback_address_of_ipv6(retriever, monkeypatch):
    said, asked = [], []

    def answer(server, sockets):
        thread = threading.Thread(target=real, args=(server, sockets))
        thread.start()
        asked.append(httpx.get(f"{said[-1].split()[0]}/api/about", timeout=60).status_code)
        server.should_exit = True
        thread.join()

    real = uvicorn.Server.run
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    monkeypatch.setattr(uvicorn.Server, "run", answer)
    serve(retriever, "::1", 0, said.append)
    assert asked == [200]
    assert said[0].startswith("http://[::1]:")
