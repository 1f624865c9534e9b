"""Take the picture of the search page for the README, with the explanation of the first answer open:

    python docs/picture.py "a query" docs/images/page.png

Needs a finished pipeline and Chromium.
"""

import shutil
import subprocess
import sys

from playwright.sync_api import sync_playwright

SIZE = {"width": 1180, "height": 800}


def take(address: str, query: str, path: str) -> None:
    """Save a picture of the page when every video shows a frame; the first shows the frame that fits best."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport=SIZE)
        tab.goto(address)
        tab.fill("#q", query)
        tab.locator(".why").first.click()
        tab.wait_for_selector(".reason table")
        tab.wait_for_function("() => [...document.querySelectorAll('video')].every(video => video.readyState >= 2)")
        best = tab.request.get(f"{address}/api/search", params={"q": query}).json()["hits"][0]
        why = tab.request.get(f"{address}/api/explain", params={"q": query, "video_id": best["video_id"]}).json()
        shown = max(zip(why["relevance"], why["times_s"], strict=True))[1]
        tab.evaluate("""shown => {
            const video = document.querySelector('video');
            document.querySelector('.why').blur();
            return new Promise(done => {
                video.pause();
                video.onseeked = () => setTimeout(done, 200);
                video.currentTime = shown;
            });
        }""", shown)
        tab.screenshot(path=path)
        browser.close()


def main(query: str, path: str) -> None:
    with subprocess.Popen(["hcmi", "serve", "--port", "0"], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            take(server.stdout.readline().split()[0], query, path)
        finally:
            server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
