"""How quickly the flows do their work, with the Prefect server and a worker running as with `make flows`.

- Seconds that Prefect adds to a run with nothing to do: the flow, minus DVC's check of every stage in the same minute.
  Each run is a new process; the best of several runs counts.
- Seconds from the start of the hourly `ingest`, which the worker runs, until 30 new clips can be found on the page.
  The clips have just been copied into the inbox, so the minute counts in which their size must not change.

Without --project a small pipeline is made first. With it, a copy of that finished project is measured.

    python benchmarks/flow.py [--quick] [--project FOLDER]
"""

import argparse
import csv
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import table, write_result
from pipeline import QUICK, fresh_copy

DVC_ONLY = "from flows.stages import is_stale, plan; assert not [step for step in plan() if is_stale(step.name)]"
NEW = 30
# The batches that the pipeline makes have been judged by an earlier run.
JUDGED = """
from pathlib import Path
from hcmi.incoming import Ledger, find_batches, look
ledger = Ledger(Path("reports/watch"))
for folder in find_batches(Path("data/incoming")):
    ledger.record(ledger.content(folder, look(folder)), folder.name, "cannot tell")
"""
BATCH = "data/incoming/scenes_same"     # the new clips are those of this batch of Scenes
TOO_LONG = 3600


def seconds(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(address: str, body: dict | None = None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@contextmanager
def started(command: list[str], sign: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """A process that has printed `sign`; it ends with the block."""
    log = folder / f"{command[1]}.log"
    process = subprocess.Popen([sys.executable, "-u", *command], cwd=folder, env=environment, stdout=log.open("w"),
                               stderr=subprocess.STDOUT)
    try:
        while sign not in log.read_text():
            if process.poll() is not None:
                sys.exit(f"benchmarks/flow.py: need {command[1]} running, got:\n{log.read_text()}")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


def copy_of(project: Path, folder: Path) -> None:
    """Replace the data and outputs in `folder` by those of the project, which must be up to date with this code."""
    outputs = "params.yaml dvc.lock data models export plots metrics reports releases code"
    for name in (*outputs.split(), ".dvc/cache"):       # without its cache DVC would run every stage again
        if (project / name).exists():
            subprocess.run(["rm", "-rf", name], cwd=folder, check=True)
            subprocess.run(["cp", "-a", "--reflink=auto", str(project / name), name], cwd=folder, check=True)


def put_clips(folder: Path) -> dict[str, str]:
    """Copy new clips with their captions into the inbox. Returns name -> its first caption."""
    inbox = folder / "data/inbox"
    shutil.rmtree(inbox, ignore_errors=True)
    (inbox / "videos").mkdir(parents=True)
    films = sorted((folder / BATCH / "videos").glob("*.mp4"))[:NEW]
    for film in films:
        shutil.copy(film, inbox / "videos" / film.name)
    shutil.copy(folder / BATCH / "captions.csv", inbox / "captions.csv")
    with open(inbox / "captions.csv", encoding="utf-8", newline="") as file:
        captions = {row["video"]: row["caption"] for row in reversed(list(csv.DictReader(file)))}
    return {film.name: captions[film.name] for film in films}


def until_found(captions: dict[str, str], api: str, page: str) -> tuple[float, int]:
    """Seconds from the start of a run of the deployment `ingest` until the page searches all of the clips.

    And how many of them are then among the first ten answers to their own caption.
    """
    deployment = ask(f"{api}/deployments/name/ingest/ingest")["id"]
    before = ask(f"{page}/api/about")["videos"]
    begin = time.perf_counter()
    run = ask(f"{api}/deployments/{deployment}/create_flow_run", {})["id"]
    while ask(f"{page}/api/about")["videos"] < before + len(captions):
        state = ask(f"{api}/flow_runs/{run}")["state"]
        if state["type"] in ("FAILED", "CRASHED") or time.perf_counter() - begin > TOO_LONG:
            sys.exit(f"benchmarks/flow.py: need the clips found, got a run that is {state['name']}: {state['message']}")
        time.sleep(0.5)
    took = time.perf_counter() - begin
    return took, sum(name in {Path(hit["path"]).name for hit in ask(
        f"{page}/api/search?q={urllib.parse.quote(caption)}&top=10")["hits"]} for name, caption in captions.items())


def measure(folder: Path, environment: dict[str, str], runs: int) -> dict[str, float]:
    """The figures of a project whose stages are all up to date and of which a release is served."""
    port, page = free_port(), free_port()
    api = f"http://127.0.0.1:{port}/api"
    served = {**environment, "PREFECT_API_URL": api}
    with started(["-m", "flows.up", "--port", str(port)], "make flows: ready", folder, environment):
        flow = min(seconds([sys.executable, "-m", "flows.pipeline"], folder, served) for _ in range(runs))
        dvc = min(seconds([sys.executable, "-c", DVC_ONLY], folder, environment) for _ in range(runs))
        with started(["-m", "hcmi", "serve", "--port", str(page)], "Ctrl-C stops", folder, environment):
            took, found = until_found(put_clips(folder), api, f"http://127.0.0.1:{page}")
    return {"overhead_seconds": flow - dvc, "flow_seconds": flow, "dvc_seconds": dvc, "searchable_seconds": took,
            "in_first_ten": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs instead of five")
    parser.add_argument("--project", type=Path, help="a finished project to measure a copy of")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hcmi-flow-") as name:
        folder = Path(name)
        environment = {**fresh_copy(folder, QUICK), "PREFECT_HOME": str(folder / ".hcmi/prefect")}
        if options.project:
            copy_of(options.project, folder)
        for command in (["dvc", "repro"], [sys.executable, "-m", "hcmi", "promote"], [sys.executable, "-c", JUDGED]):
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=sys.stderr)
        figures = measure(folder, environment, 2 if options.quick else 5)
    print(table(["run with nothing to do", "seconds"], [
        ("flow, server running", figures["flow_seconds"]), ("DVC alone", figures["dvc_seconds"]),
        ("overhead", figures["overhead_seconds"])]))
    print(table(["from the start of `ingest`", "seconds", "in the first ten for their caption"], [
        (f"{NEW} new clips searchable", figures["searchable_seconds"], figures["in_first_ten"])]))
    print(write_result("flow", figures, options.quick))


if __name__ == "__main__":
    main()
