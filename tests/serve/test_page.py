"""The search page in a real browser, where there is one."""

import re
import shutil

import numpy as np
import pytest
from search_world import searchable_model, write_video
from serve_world import proxy, running, served, write_pair
from video_files import write_pictures

from hcmi.config import WindowsConfig
from hcmi.search import Retriever, span_text, time_text
from hcmi.serve.app import STATIC

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
    assert [text for text in errors if not re.search("400 \\(Bad Request|ERR_FAILED", text)] == []


def asks(tab) -> list[str]:
    """What the page asks the server for from now on, without the files of the page and the videos."""
    found: list[str] = []
    tab.on("request", lambda request: found.append(request.url) if "/api/" in request.url else None)
    return found


def settled(tab, text: str) -> None:
    tab.wait_for_function("text => document.querySelector('#status').textContent.includes(text)", arg=text)


def overflow(tab) -> int:
    """The pixels by which the page is wider than the window."""
    return tab.evaluate("document.documentElement.scrollWidth - innerWidth")


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


def test_search_asks_again_after_an_error(tab):
    tab.route("**/api/*", lambda route: route.abort())
    tab.goto("/")
    tab.fill("#q", "a red ring")
    tab.wait_for_selector("#error:not([hidden])")
    tab.wait_for_timeout(400)
    tab.unroute("**/api/*")
    asked = asks(tab)
    tab.locator("#ask > button").click()
    tab.wait_for_selector(".hit")
    assert tab.locator("#error").is_hidden()
    assert sorted(url.partition("/api/")[2].partition("?")[0] for url in asked) == ["about", "search"]
    tab.focus("#q")
    with tab.expect_request("**/api/search?*"):     # videos may have been added
        tab.keyboard.press("Enter")
    tab.fill("#q", "")
    settled(tab, "3 videos")


def test_why_asks_again_after_an_error(tab):
    tab.goto("/?q=a+red+ring")
    tab.wait_for_selector(".hit")
    tab.route("**/api/explain*", lambda route: route.abort())
    tab.locator(".why").first.click()
    tab.wait_for_selector(".reason p")
    tab.unroute("**/api/explain*")
    tab.locator(".why").first.click()
    tab.locator(".why").first.click()
    tab.wait_for_selector(".reason table")


def test_filters_stay_on_a_similar_page(tab, retriever):
    own = retriever.search("a red ring")[0].video_id
    tab.goto("/?q=a+red+ring&max_seconds=60")
    tab.wait_for_selector(".hit")
    tab.locator(".like").first.click()
    tab.wait_for_url(f"**/?max_seconds=60&like={own}")
    settled(tab, "2 answers like")
    tab.fill("[name=top]", "1")
    settled(tab, "1 answer like")
    assert tab.url.endswith(f"/?max_seconds=60&top=1&like={own}")
    tab.fill("[name=max_seconds]", "1")
    settled(tab, "Nothing found")
    tab.fill("[name=max_seconds]", "")
    tab.fill("#q", "a ring")
    tab.wait_for_url("**/?q=a+ring&top=1")


def test_tag_counts_once_it_is_typed_to_its_value(tab):
    tab.goto("/?q=a+red+ring")
    tab.wait_for_selector(".hit")
    asked = asks(tab)
    tab.locator("#filters summary").click()
    for part in ("place", "place="):
        tab.fill("[name=tag]", part)
        tab.wait_for_timeout(400)
    assert (asked, tab.locator(".hit").count()) == ([], 3)
    tab.fill("[name=tag]", "place=sea")
    settled(tab, "Nothing found")
    tab.fill("[name=tag]", "place")
    settled(tab, "3 answers")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#error:not([hidden])")
    assert "tag: need NAME=VALUE, got 'place'" in tab.inner_text("#error")


def test_page_says_that_it_searches_when_the_answer_takes_long(tab):
    tab.goto("/")
    settled(tab, "3 videos")
    held = []
    tab.route("**/api/search*", lambda route: held.append(route))
    tab.fill("#q", "a red ring")
    settled(tab, "Searching…")
    assert tab.get_attribute("#hits", "aria-busy") == "true"
    held.pop().continue_()
    settled(tab, "3 answers")
    assert tab.get_attribute("#hits", "aria-busy") == "false"
    tab.fill("#q", "a blue ring")
    settled(tab, "Searching…")
    tab.fill("#q", "")
    settled(tab, "3 videos")
    assert tab.get_attribute("#hits", "aria-busy") == "false"
    tab.wait_for_timeout(400)
    assert tab.inner_text("#status") == "3 videos"


def test_keyboard_pauses_what_plays(tab):
    tab.goto("/?q=a+red+ring")
    tab.wait_for_function("() => document.querySelector('video')?.paused === false")
    for name, paused in ((".play", True), (".play", False), (".whole", False), (".whole", True), (".whole", False)):
        tab.locator(name).first.focus()
        tab.keyboard.press("Enter")
        tab.wait_for_timeout(300)       # at the end of a loop a video is paused for an instant
        assert tab.locator("video").first.evaluate("video => video.paused") == paused


def test_page_names_the_files_that_cannot_be_searched(browser, tmp_path, world):
    write_video(tmp_path / "videos/whole.mp4", 100)
    for number in range(5):
        (tmp_path / f"videos/broken{number}.mp4").write_bytes(b"no video %d" % number)
    retriever = Retriever.from_folder(tmp_path / "videos", world / "model", cache=tmp_path / "cache")
    assert len(retriever.notes) == 5
    with served(retriever) as address, browser.new_context(base_url=address) as context:
        tab = context.new_page()
        tab.goto("/")
        settled(tab, "1 video · ")
        assert tab.inner_text("#status").split(" · ")[1:] == [*retriever.notes[:3], "and 2 more"]
        tab.fill("#q", "a red ring")
        settled(tab, "1 answer")
        assert tab.inner_text("#status").endswith("and 2 more")


def test_why_of_a_checkpoint_names_its_row_and_shows_its_frames(browser, world, tmp_path):
    """Fewer than 32 videos give no baseline: a last row would only repeat the first one."""
    model = searchable_model()
    model.config.level_weights = {level: float(level == "video_sentence") for level in model.head.levels}
    retriever = Retriever.from_folder(world / "videos", model, cache=tmp_path / "cache")
    with served(retriever) as address, browser.new_context(base_url=address) as context:
        tab = context.new_page()
        tab.set_viewport_size({"width": 375, "height": 740})
        tab.goto("/?q=a+red+ring+slides+left+then+a+blue+square+grows+right+then+a+green+ring")
        tab.locator(".why").first.click()
        tab.wait_for_selector(".reason table")
        assert tab.locator(".reason tbody th").all_inner_texts() == ["the query"]
        assert tab.locator(".reason td").nth(1).evaluate("cell => cell.getBoundingClientRect().right <= innerWidth")
        legend = tab.inner_text(".legend")
        assert "The times of the moment are orange" in legend
        assert "standard deviations" not in legend


def test_why_says_that_the_last_row_is_against_other_videos_when_there_are_enough(browser, tmp_path):
    write_pair(tmp_path, 0, 40, write_video(tmp_path / "film.mp4", 200))
    with served(Retriever(tmp_path / "models/hcmi", tmp_path / "export/index")) as address, \
            browser.new_context(base_url=address) as context:
        tab = context.new_page()
        tab.goto("/?q=a+red+ring")
        tab.locator(".why").first.click()
        tab.wait_for_selector(".reason table")
        assert tab.locator(".reason .together th").inner_text() == "above others"
        assert "The last row: standard deviations above other videos." in tab.inner_text(".legend")


@pytest.mark.parametrize("width", [280, 375])
def test_page_is_no_wider_than_the_window(tab, width):
    tab.set_viewport_size({"width": width, "height": 700})
    tab.goto("/?q=a+red+ring")
    tab.locator(".why").first.click()
    tab.wait_for_selector(".reason table")
    assert overflow(tab) <= 0
    for query in ("ring+" + "z" * 300, "z" * 300, "ring&tag=" + "z" * 300):
        tab.goto(f"/?q={query}")
        tab.wait_for_selector(".hit, #error:not([hidden])")
        assert overflow(tab) <= 0


def test_moment_stays_on_its_line_when_the_browser_counts_fewer_seconds(tab):
    def late(route):
        found = route.fetch().json()
        for hit in found["hits"]:
            hit.update(start_s=3.0, end_s=9.0)      # of 4 seconds
        route.fulfill(json=found)

    tab.route("**/api/search*", late)
    tab.goto("/?q=a+red+ring")
    tab.wait_for_function("() => document.querySelector('.moment')?.style.width")
    assert tab.locator(".moment").first.evaluate("mark => [mark.style.left, mark.style.width]") == ["75%", "25%"]


def test_page_has_a_heading_and_names_every_column(tab):
    tab.goto("/?q=a+red+ring")
    assert tab.locator("h1").inner_text() == "HCMI: search videos"
    tab.locator(".why").first.click()
    tab.wait_for_selector(".reason table")
    assert "" not in [text.strip() for text in tab.locator(".reason th").all_inner_texts()]


def channels(colour: str) -> np.ndarray:
    """0 to 1, of `#abc`, `#aabbcc` or `10 20 30`."""
    if " " in colour:
        return np.array(colour.split(), float) / 255
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    return np.frombuffer(bytes.fromhex(digits), np.uint8) / 255


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """As WCAG defines it."""
    light = [float(np.where(rgb <= .04045, rgb / 12.92, ((rgb + .055) / 1.055) ** 2.4) @ (.2126, .7152, .0722)) + .05
             for rgb in (one, other)]
    return max(light) / min(light)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_can_be_read_on_their_grounds(dark):
    parts = (STATIC / "page.css").read_text(encoding="utf-8").split("(prefers-color-scheme: dark)")
    colour = {name: channels(value) for part in parts[:1 + dark]
              for name, value in re.findall(r"--([\w-]+): (#\w+|\d+ \d+ \d+);", part)}
    pairs = [(text, ground) for text in ("ink", "soft", "wrong") for ground in ("paper", "card")]
    pairs += [("moment-text", "card"), ("blue", "card")]
    assert {pair: contrast(colour[pair[0]], colour[pair[1]]) for pair in pairs
            if contrast(colour[pair[0]], colour[pair[1]]) < 4.5} == {}
    for share in np.linspace(0, 1, 11):
        cell = share * colour["heat"] + (1 - share) * colour["card"]
        assert contrast(colour["ink"], cell) >= 4.5
    assert contrast(.7 * colour["ink"] + .3 * colour["card"], colour["card"]) >= 4.5      # of the palest word
    assert contrast(np.zeros(3), np.ones(3)) == pytest.approx(21)
    assert contrast(channels("#d9822b"), np.ones(3)) == pytest.approx(2.92, abs=0.01)   # as axe-core computes it


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
