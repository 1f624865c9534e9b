"""A project with a model, its export and its figures, from which releases are made."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from model_world import shake, tiny_model
from search_world import call_hcmi

from hcmi.config import Params, load_params
from hcmi.dataset import Accepted, accept
from hcmi.incoming import SEARCHED
from hcmi.model import load_retriever

TESTS = Path(__file__).parent

def make_project(project: Path, folder: Path) -> Path:
    """A copy of the session's small project with models/hcmi, export/, metrics/ and plots/ in place."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data/incoming").mkdir(parents=True)
    (folder / "data/shards").symlink_to((project / "data/shards").resolve())
    shutil.copy(project / "params.yaml", folder / "params.yaml")
    (folder / "data/accepted.json").write_text("[]\n")
    shutil.copytree(project / "model", folder / "models/hcmi")
    for name in ("export", "metrics", "plots"):
        shutil.copytree(project / name, folder / name)
    return folder


def train_model(folder: Path, seed: int) -> None:
    """Replace the model by another one, and make its export and figures by the real stages."""
    model = shake(tiny_model(), seed)
    shutil.rmtree(folder / "models", ignore_errors=True)
    model.save_pretrained(folder / "models/hcmi")
    with contextlib.chdir(folder):
        call_hcmi("export")
        call_hcmi("evaluate")


def fingerprint(folder: Path) -> str:
    return load_retriever(folder).fingerprint


def params(folder: Path) -> Params:
    return load_params(folder / "params.yaml")


def promote(*options: str) -> dict:
    """The decision of `hcmi promote`, called in the working folder."""
    return json.loads(call_hcmi("promote", "--json", *options).stdout)


def put_batch(folder: Path, name: str, videos: list[Path], captions: dict[str, str] | None = None) -> Path:
    """A batch in data/incoming; `captions`: name of a file -> its caption."""
    batch = folder / "data/incoming" / name
    (batch / "videos").mkdir(parents=True)
    for video in videos:
        shutil.copy(video, batch / "videos" / video.name)
    if captions:
        lines = ["video,caption", *(f"{video},{caption}" for video, caption in captions.items())]
        (batch / "captions.csv").write_text("\n".join(lines) + "\n")
    return batch


def accept_batch(folder: Path, name: str, verdict: str = "ok", searched: bool = True) -> None:
    """Put a batch on the list of accepted ones, and on that of searched ones."""
    path = folder / "data/accepted.json"
    accept(path, Accepted(name, "content", verdict, "now"))
    if searched:
        path.with_name(SEARCHED).write_text(json.dumps({"content": name}))


KILLER = """
import os, signal, sys, time
sys.path[:0] = {tests!r}
import torch
import hcmi.ingest.stage, hcmi.promote.stage
from hcmi.config import load_params
from hcmi.drift import drift
torch.set_num_threads(1)
for line in sys.stdin:
    folder, _, seconds = line.strip().rpartition(" ")
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.chdir(folder)
        os.dup2(2, 1)
        {call}
        os._exit(0)
    if float(seconds):
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print(status, time.monotonic() - started, flush=True)
"""


class Killer:
    """Runs one line of Python in a process that has loaded everything, and kills it after some seconds."""

    def __init__(self, call: str):
        program = KILLER.format(tests=[str(TESTS)], call=call)
        self._process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, text=True,
                                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                         env={**os.environ, "OMP_NUM_THREADS": "1"})

    def run(self, folder: Path, seconds: float = 0.0) -> tuple[int, float]:
        """The status (0: it ended by itself, without an error) and the length in seconds. 0 seconds: no kill."""
        print(folder, seconds, file=self._process.stdin, flush=True)
        status, length = self._process.stdout.readline().split()
        return int(status), float(length)

    def close(self) -> None:
        self._process.communicate()


def killed_runs(call: str, pristine: Path, folder: Path, kills: int, seed: int) -> Iterator[tuple[str, Path]]:
    """Run `call` on copies of `pristine`: once undisturbed, then `kills` times killed at random and run again.

    Yields what has just happened (undisturbed, killed, continued) and the folder of it.
    """
    killer, generator = Killer(call), np.random.default_rng(seed)
    try:
        shutil.copytree(pristine, folder / "undisturbed", symlinks=True)
        status, length = killer.run(folder / "undisturbed")
        assert status == 0
        yield "undisturbed", folder / "undisturbed"
        for number in range(kills):
            here = folder / str(number)
            shutil.copytree(pristine, here, symlinks=True)
            killer.run(here, generator.random() * length)
            yield "killed", here
            assert killer.run(here)[0] == 0
            yield "continued", here
            shutil.rmtree(here)
    finally:
        killer.close()
