"""Small worlds to search in: made-up tokens, clips and an untrained model."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner, Result
from model_world import section, tiny_model
from video_files import write_pictures

from hcmi.cli import main
from hcmi.model import HcmiModel
from hcmi.types import Clip, TextTokens, VideoTokens

WORDS = ("red", "blue", "green", "ring", "square", "slides", "grows", "left", "right", "then", "a")
CAPTIONS = [f"a {c} {s} {a} {d}"
            for c in WORDS[:3] for s in WORDS[3:5] for a in WORDS[5:7] for d in WORDS[7:9]] * 3
T, C, W, P, D = 6, 2, 8, 4, 32


def searchable_model(seed: int = 0, head: str = "hcmi", captions: Sequence[str] = CAPTIONS) -> HcmiModel:
    """`tiny_model` in the shape of the tokens made here, knowing the words of `captions`."""
    scratch = {**section().scratch.model_dump(), "vision_layers": 1, "vocab_size": 400}
    return tiny_model(head, seed, captions=captions, num_frames=T, num_clips=C, num_phrases=P, scratch=scratch)


def unit(values: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(values.astype(np.float32)), dim=-1)


def weights(rows: int, count: int) -> torch.Tensor:
    return torch.full((rows, count), 1 / count)


def video_tokens(rows: int, generator: np.random.Generator, dim: int = D) -> VideoTokens:
    whole = generator.normal(size=(rows, dim))
    return VideoTokens(unit(whole), unit(whole[:, None] + generator.normal(size=(rows, T, dim))),
                       unit(whole[:, None] + generator.normal(size=(rows, C, dim))), weights(rows, T), weights(rows, C))


def text_tokens(rows: int, generator: np.random.Generator, dim: int = D) -> TextTokens:
    return TextTokens(unit(generator.normal(size=(rows, dim))), unit(generator.normal(size=(rows, W, dim))),
                      unit(generator.normal(size=(rows, P, dim))), weights(rows, W), weights(rows, P))


def times(rows: int) -> np.ndarray:
    return np.tile(np.arange(T, dtype=np.float32) + 0.5, (rows, 1))


def clips(names: list[str], **changes) -> list[Clip]:
    """One 6-second clip per name; the name stands for the file's bytes."""
    made = []
    for number, name in enumerate(names):
        fields = {"video_id": name, "path": f"videos/{name}.mp4", "split": "test", "captions": (f"a {name}",),
                  "start_s": 0.0, "end_s": 6.0, "duration_s": 6.0, "sha256": f"sha-{name}",
                  "tags": {"place": ("sea", "wood")[number % 2]}}
        made.append(Clip(**{**fields, **changes}))
    return made


def files_of_windows(sizes: Sequence[int], generator: np.random.Generator
                     ) -> tuple[list[Clip], VideoTokens, np.ndarray]:
    """Files `f0.mp4`, ... of so many windows each; their tokens; a direction [D].

    All windows of `f0` are nearest to it, then all those of `f1`, and so on. Each level gives them the same cosine.
    """
    near_D = unit(generator.normal(size=D)).numpy()
    names = [f"f{file}-{window}" for file, size in enumerate(sizes) for window in range(size)]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    cosines = 0.9 - (owner + generator.uniform(0, 0.9, len(owner))) / len(sizes)
    away = generator.normal(size=(len(owner), D))
    away = unit(away - np.outer(away @ near_D, near_D)).numpy()
    vectors = unit(cosines[:, None] * near_D + np.sqrt(1 - cosines**2)[:, None] * away)
    made = [replace(clip, path=f"{name.partition('-')[0]}.mp4", start_s=float(at), end_s=at + 6.0)
            for at, (clip, name) in enumerate(zip(clips(names), names, strict=True))]
    return made, same_tokens(vectors), near_D


def same_tokens(vectors_VD: torch.Tensor) -> VideoTokens:
    """Videos whose frames and clips all have the vector of the video."""
    rows = len(vectors_VD)
    return VideoTokens(vectors_VD, vectors_VD[:, None].repeat(1, T, 1), vectors_VD[:, None].repeat(1, C, 1),
                       weights(rows, T), weights(rows, C))


def write_grey_videos(folder: Path) -> None:
    """g60.mp4, g160.mp4 and g240.mp4."""
    for grey in (60, 160, 240):
        write_video(folder / f"g{grey}.mp4", grey)


def call_hcmi(*arguments: object, code: int = 0) -> Result:
    """The result of the command `hcmi`, which must end with this exit code and without a traceback."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == code, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result


def write_video(path: Path, grey: int, seconds: float = 2.0, fps: int = 8) -> Path:
    """A small H.264 file of one grey level, darker by 2 each frame."""
    return write_pictures(path, (np.full((32, 32, 3), max(grey - 2 * number, 0), np.uint8)
                                 for number in range(round(seconds * fps))), fps)


KILL_LOOP = """
import os, signal, sys, time
sys.path[:0] = {tests!r}
{setup}
for number, line in enumerate(sys.stdin):
    whole, share = line.split()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        for at in range(10**6):
            started = time.monotonic()
            {change}
            os.write(writer, b"%f\\n" % (time.monotonic() - started))
    os.close(writer)
    with os.fdopen(reader) as reports:
        lengths_s = [float(reports.readline()) for _ in range(int(whole))]
        time.sleep(float(share) * max(lengths_s))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        print(int(whole) + len(reports.readlines()), flush=True)
"""


def changes_until_killed(setup: str, change: str, kills: Iterable[tuple[int, float]]) -> Iterator[int]:
    """Repeat a change in a process until it is killed, once for each of `kills`; the number of changes it finished.

    `kills`: (number of changes to wait for, at least 1; share of the length of a change to wait for after them). The
    process reports each change and its length, so that a kill falls into a change however busy the machine is.
    `setup`: lines of Python that load what is loaded late. `change`: one line, in which `number` is the number of the
    process and `at` that of the change.
    """
    tests = Path(__file__).parent
    program = KILL_LOOP.format(tests=[str(tests), *map(str, tests.glob("*/"))], setup=setup, change=change)
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        assert process.stdin
        assert process.stdout
        for whole, share in kills:
            print(whole, share, file=process.stdin, flush=True)
            yield int(process.stdout.readline())
        process.stdin.close()
