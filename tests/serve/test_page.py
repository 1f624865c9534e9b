"""The search page in a real browser, where there is one."""

import shutil

import numpy as np
import pytest
from serve_world import proxy, running, served
from video_files import write_pictures

from hcmi.config import WindowsConfig
from hcmi.search import Retriever, span_text, time_text

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PROXY = "films.example.org"


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=[
            "--no-sandbox", f"--host-resolver-rules=MAP {PROXY} 127.0.0.1"])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, page):
    """A tab on the page; the test fails when the page's script reports an error."""
    errors: list[str] = []
    with browser.new_context(base_url=str(page.base_url)) as context:
        tab = context.new_page()
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        yield tab
    assert [text for text in errors if "400 (Bad Request)" not in text] == []


def test_typing_plays_the_moment_of_the_first_answer(tab, retriever):
    tab.goto("/")
    tab.fill("#q", "a red ring slides left")
    tab.wait_for_selector(".hit")
    best = retriever.search("a red ring slides left")[0]
    assert best.video_id in tab.locator("video").first.get_attribute("src")
    tab.wait_for_function("at => { const v = document.querySelector('video'); return !v.paused && v.currentTime > at }",
                          arg=best.start_s)
    tab.locator("video").first.evaluate("video => video.addEventListener('seeked', () => video.dataset.seeked = '1')")
    tab.wait_for_function("() => document.querySelector('video').dataset.seeked")    # the moment is played in a loop
    assert tab.locator("video").first.evaluate("video => video.currentTime") <= best.end_s + 0.5
    assert tab.locator(".time").first.inner_text() == f"{best.start_s:.1f} - {best.end_s:.1f} s"
    assert "q=a+red+ring" in tab.url


def test_typing_is_kept_when_the_server_answers_slowly(tab):
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
    assert cells == [f"{value:.2f}" for value in
                     (*why.frame_word_TW[:, 1], why.word_weights_W[1], why.word_shares_W[1])]
    best = tab.locator(".reason tbody tr").nth(1).locator(".best").all_inner_texts()
    assert best == [f"{why.word_cosines_W[1]:.2f}"]
    assert tab.locator(".reason .together td").last.inner_text() == f"{why.word_shares_W.sum():.2f}"
    lines = tab.locator(".rest li").all_inner_texts()
    assert lines[0].endswith(f"text: share {why.marks_share:.2f}")
    assert lines[1].endswith(f"weight {why.phrases[0].weight:.2f}, share {why.phrases[0].share:.2f}")
    tab.locator(".reason thead button").last.click()
    tab.wait_for_function("at => document.querySelector('video').currentTime >= at - 0.1", arg=float(why.times_s[-1]))
    tab.set_viewport_size({"width": 380, "height": 800})
    assert tab.locator(".legend").evaluate("text => text.scrollWidth <= text.parentElement.clientWidth")
    tab.locator(".why").first.click()
    assert tab.locator(".reason").first.is_hidden()


def test_back_returns_to_the_previous_answers(tab, retriever):
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


def test_page_names_the_words_that_were_left_out(tab):
    tab.goto("/?q=a+red+ring")
    tab.wait_for_selector(".hit")
    tab.fill("#q", "a splendid ring")
    tab.wait_for_function("() => document.querySelector('#status').textContent.endsWith('has them: splendid.')")


def test_address_of_an_earlier_version_opens_and_loses_its_unknown_parameter(tab, retriever):
    """`part=1` was a box of the page."""
    tab.goto("/?q=a+red+ring&part=1")
    tab.wait_for_selector(".hit")
    assert tab.locator(".hit .file").first.inner_text() == retriever.search("a red ring")[0].path.rpartition("/")[2]
    assert not tab.evaluate("document.querySelector('#filters').open")
    tab.locator(".why").first.click()
    tab.wait_for_selector(".reason table")
    tab.fill("#q", "a ring")
    tab.wait_for_url("**/?q=a+ring")


def test_page_works_after_an_error(tab):
    tab.goto("/?q=ring&top=5000")
    tab.wait_for_selector("#error:not([hidden])")
    assert "need 1 to 1000, got 5000" in tab.inner_text("#error")
    tab.fill("[name=top]", "1")
    tab.wait_for_selector(".hit")
    assert tab.locator(".hit").count() == 1
    assert tab.locator("#error").is_hidden()


def test_page_plays_the_further_moments_of_a_film(browser, tmp_path, world):
    colours = np.random.default_rng(0).integers(0, 255, (80 * 4, 3)).cumsum(0) // 3 % 256
    write_pictures(tmp_path / "videos/film.mp4", (np.full((48, 48, 3), colour, np.uint8) for colour in colours), 4)
    retriever = Retriever.from_folder(tmp_path / "videos", world / "model", cache=tmp_path / "cache", windows=
                                      WindowsConfig(cut="fixed", seconds=10.0, overlap_seconds=0.0, whole_seconds=30.0))
    hit, = retriever.search("a red ring")
    assert max(moment.end_s for moment in hit.more) > 60, "times in minutes are tested too"
    with served(retriever) as address, browser.new_context(base_url=address) as context:
        tab = context.new_page()
        tab.goto("/")
        tab.wait_for_function("() => document.querySelector('#status').textContent === '1 video in 8 parts'")
        tab.goto("/?q=a+red+ring")
        tab.wait_for_selector(".more button")
        times = tab.locator(".more button").all_inner_texts()
        assert times == [span_text(moment.start_s, moment.end_s) for moment in hit.more]
        tab.wait_for_function("count => document.querySelectorAll('.moment.other').length === count", arg=len(times))
        tab.locator(".more button").nth(1).click()
        tab.wait_for_function("([from, to]) => { const at = document.querySelector('video').currentTime; "
                              "return from - 0.1 <= at && at <= to + 0.5 }",
                              arg=[hit.more[1].start_s, hit.more[1].end_s])
        assert tab.locator(".more [aria-pressed=true]").all_inner_texts() == [times[1]]
        tab.wait_for_function("left => Math.abs(parseFloat(document.querySelector('.moment:not(.other)').style.left) - "
                              "left) < 0.1", arg=100 * hit.more[1].start_s / 80)
        tab.locator(".play").click()
        tab.wait_for_function("to => document.querySelector('video').currentTime <= to + 0.5", arg=hit.end_s)
        assert tab.locator(".more [aria-pressed=true]").count() == 0
        tab.locator(".why").click()
        tab.wait_for_selector(".reason table")
        assert tab.locator(".reason thead button").all_inner_texts() == [
            *map(time_text, retriever.explain("a red ring", hit).times_s)]


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


def test_page_works_behind_a_proxy_that_shows_it_below_a_prefix_under_its_own_name(browser, retriever):
    """Style, script, answers, video, reason and shared addresses: all of them through the proxy."""
    wrong: list[str] = []
    with served(retriever, hosts=(PROXY,)) as address, running(proxy(address, "/team/films")) as front, \
            browser.new_context() as context:
        start = f"{front.replace('127.0.0.1', PROXY)}/team/films"
        tab = context.new_page()
        tab.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
        tab.on("request", lambda request: None if request.url.startswith(start) else wrong.append(request.url))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.goto(start)
        assert tab.url == f"{start}/"
        tab.fill("#q", "a red ring")
        tab.wait_for_selector(".hit")
        tab.wait_for_function("() => document.querySelector('video').currentTime > 0")
        tab.locator(".why").first.click()
        tab.wait_for_selector(".reason table")
        assert tab.locator("body").evaluate("body => document.styleSheets.length") == 1
        assert tab.url == f"{start}/?q=a+red+ring"
        tab.goto(tab.url)
        tab.wait_for_selector(".hit")
        assert wrong == []
        other = context.new_page().goto(f"{front}/team/films/api/about")      # by another name than the allowed one
        assert other.status == 400
