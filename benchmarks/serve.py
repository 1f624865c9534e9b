"""The search page under load, on the index of a finished pipeline: `hcmi serve` runs in a separate process.

- `errors`: wrong or failed answers among all searches of 8 clients at once
- `p50_ms`, `p99_ms`, `p99_over_p50`: time of a search as these clients see it; they send searches without a pause
- `page_first_answer_ms`: in Chromium, from opening an address with a query to the first answer on the page, median
- `page_kb`: what the browser loads for that, without videos

    python benchmarks/serve.py [--quick]
"""

import argparse
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
from common import shipped, table, write_result

from hcmi.dataset import read_manifest

CLIENTS, SEARCHES, OPENINGS = 8, 200, 20


@contextmanager
def served() -> Iterator[str]:
    """The address of `hcmi serve` over export/index, whatever release is current."""
    command = [sys.executable, "-m", "hcmi", "serve", "--port", "0", "--model", shipped("models/hcmi"), "--index",
               f"{shipped('export')}/index"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        try:
            yield server.stdout.readline().split()[0]
        finally:
            server.terminate()


def ask(address: str, queries: list[str]) -> tuple[list[float], int]:
    """Seconds of each search of one client, and the number of wrong or failed answers."""
    seconds, errors = [], 0
    with httpx.Client(base_url=address, timeout=60) as client:
        for query in queries:
            started = time.perf_counter()
            answer = client.get("/api/search", params={"q": query})
            seconds.append(time.perf_counter() - started)
            errors += answer.status_code != 200 or [hit["rank"] for hit in answer.json()["hits"]] != list(range(1, 11))
    return seconds, errors


def open_page(address: str, queries: list[str]) -> tuple[float, float]:
    """Median milliseconds to the first answer and median kilobytes loaded for it, each time with an empty cache."""
    from playwright.sync_api import sync_playwright

    took, sizes = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for query in queries:
            with browser.new_context(base_url=address) as context:
                tab = context.new_page()
                answers = []
                tab.on("response", lambda answer, answers=answers: "/video/" in answer.url or answers.append(answer))
                started = time.perf_counter()
                tab.goto("/?" + str(httpx.QueryParams(q=query)), wait_until="commit")
                tab.wait_for_selector(".hit")
                took.append(1000 * (time.perf_counter() - started))
                sizes.append(sum(len(answer.body()) for answer in answers) / 1024)
        browser.close()
    return statistics.median(took), statistics.median(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the searches")
    quick = parser.parse_args().quick
    manifest = f"{shipped('data/manifest')}/manifest.parquet"
    captions = [caption for clip in read_manifest(manifest) for caption in clip.captions]
    chosen = random.Random(0).sample(captions, CLIENTS * SEARCHES // (10 if quick else 1))
    with served() as address:
        ask(address, chosen[:20])
        with ThreadPoolExecutor(CLIENTS) as clients:
            found = list(clients.map(lambda number: ask(address, chosen[number::CLIENTS]), range(CLIENTS)))
        opened_ms, page_kb = open_page(address, chosen[:OPENINGS // (4 if quick else 1)])
    seconds = sorted(value for part, _ in found for value in part)
    p50, p99 = (1000 * seconds[int(share * (len(seconds) - 1))] for share in (0.5, 0.99))
    figures = {"searches": len(seconds), "errors": sum(errors for _, errors in found), "p50_ms": p50, "p99_ms": p99,
               "p99_over_p50": p99 / p50, "page_first_answer_ms": opened_ms, "page_kb": page_kb}
    print(table(["figure", "value"], figures.items()))
    print(write_result("serve", figures, quick))


if __name__ == "__main__":
    main()
