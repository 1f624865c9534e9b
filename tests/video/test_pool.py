"""Processes that hang, crash or lose their parent, for real."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from pool_jobs import Job, act
from video_files import grey_numbers, write_grey

from hcmi.errors import DecodeError, MachineError
from hcmi.video import DecodeJob, DecoderPool


def _children() -> list[int]:
    return [process.pid for process in psutil.Process().children(recursive=True)]


def _run(jobs, timeout_s=1.0, num_workers=2):
    before = set(_children())
    with DecoderPool(num_workers, timeout_s, act) as pool:
        answers = list(pool.map(jobs))
    assert set(_children()) <= before, "a process was left behind"
    return answers


def test_pool_answers_every_job_once_when_all_is_well():
    answers = _run([Job(key) for key in range(50)], timeout_s=20)
    assert sorted(job.key for job, _ in answers) == list(range(50))
    assert all(value[0] == job.key for job, value in answers)


def test_pool_decodes_videos_by_default(tmp_path):
    video = write_grey(tmp_path / "v.mp4", num_frames=20)
    with DecoderPool(1, 20) as pool:
        (job, clip), = pool.map([DecodeJob("mine", str(video), 5, 32)])
    assert job.key == "mine"
    assert grey_numbers(clip.frames) == [2, 6, 10, 14, 18]


@pytest.mark.parametrize("act", ["hang", "spin"])
def test_pool_kills_the_process_and_continues_when_a_job_hangs(act):
    answers = dict(_run([Job(0, act, "bad.mp4"), *(Job(key) for key in range(1, 20))]))
    error = answers.pop(Job(0, act, "bad.mp4"))
    assert isinstance(error, DecodeError)
    assert error.reason == "timeout"
    assert str(error) == ("bad.mp4: need a video that can be decoded, got not decoded within shards.decode_timeout_s. "
                          "Replace or remove the file.")
    assert len(answers) == 19
    assert not any(isinstance(value, DecodeError) for value in answers.values())


def test_pool_waits_when_a_job_had_little_time_on_a_busy_machine():
    """More than two seconds pass, but the job has used less than the one second that it may."""
    (_, value), = _run([Job(0, "starve")], timeout_s=1.0, num_workers=1)
    assert value[0] == 0


def test_pool_replaces_the_process_when_it_crashes():
    answers = dict(_run([Job(0, "crash"), *(Job(key) for key in range(1, 10)), Job(10, "crash")], timeout_s=20))
    assert [answers[Job(key, "crash")].reason for key in (0, 10)] == ["crashed", "crashed"]
    assert all(answers[Job(key)][0] == key for key in range(1, 10))


def test_pool_runs_the_other_job_when_one_hangs_and_names_another():
    (job, value), = _run([Job(0, "hang_in_decord", decoder="auto")], num_workers=1)
    assert value[:2] == (0, "pyav")
    assert job.key == 0


def test_pool_runs_no_other_job_when_one_has_computed_all_its_time():
    """A large film, not a hang: PyAV would take as long, and a batch with some of them twice as long."""
    (job, error), = _run([Job(0, "spin_in_decord", decoder="auto")], num_workers=1)
    assert (job.decoder, error.reason) == ("auto", "timeout")


def test_pool_answers_with_a_decode_error_when_a_job_refuses_or_has_a_bug():
    answers = dict(_run([Job(0, "refuse"), Job(1, "break"), Job(2)], timeout_s=20))
    error = answers[Job(0, "refuse")]
    assert (error.reason, str(error)) == ("no_frames", "clip.mp4: no")
    error = answers[Job(1, "break")]
    assert error.reason == "unexpected"
    assert re.fullmatch(r"clip.mp4: need a video that can be decoded, got an unexpected error \("
                        r"ZeroDivisionError: a bug, in pool_jobs.py line \d+\). Remove the file, and report this "
                        r"message.", str(error))
    assert answers[Job(2)][0] == 2


@pytest.mark.parametrize(("act", "message"), [
    ("fill", r"clip.mp4: need to read it, got: No space left on device. Free space and run again."),
    ("eat", r"clip.mp4: need memory to decode it, got: Unable to allocate .* Free memory, lower shards.num_workers,")])
def test_pool_does_not_blame_the_file_when_the_machine_lacks_something(act, message):
    with pytest.raises(MachineError, match=message):
        _run([Job(0, act)], timeout_s=20)


def test_pool_runs_a_job_again_when_its_process_was_killed_by_somebody_else(tmp_path):
    """As the system does when memory is short; the second process does the job as the first would have."""
    job = Job(0, f"killed_once:{tmp_path / 'mark'}", decoder="auto")
    answers = dict(_run([job, *map(Job, range(1, 5))], timeout_s=20))
    assert answers[job][:2] == (0, "auto")
    assert len(answers) == 5


def test_pool_blames_the_file_when_its_process_is_killed_twice_and_others_are_not():
    answers = dict(_run([Job(0, "killed"), *map(Job, range(1, 5))], timeout_s=20))
    error = answers.pop(Job(0, "killed"))
    assert (error.reason, "killed twice; is memory short?" in str(error)) == ("crashed", True)
    assert len(answers) == 4


def test_pool_ends_when_all_its_processes_are_killed():
    with pytest.raises(MachineError, match=r"need them to keep running, got \d killed in a row, the last at clip"):
        _run([Job(key, "killed") for key in range(6)], timeout_s=20)


def test_pool_reads_jobs_no_faster_than_it_works_when_there_are_many():
    taken = []

    def source():
        for key in range(1000):
            taken.append(key)
            yield Job(key)

    with DecoderPool(2, 20, act) as pool:
        answers = pool.map(source())
        for _ in range(5):
            next(answers)
        assert len(taken) <= 5 + 2 * 2 + 2
        answers.close()
    assert not pool._workers


def test_pool_replaces_processes_after_some_jobs(monkeypatch):
    monkeypatch.setattr("hcmi.video.pool.JOBS_BEFORE_REPLACEMENT", 5)
    answers = _run([Job(key) for key in range(12)], timeout_s=20, num_workers=1)
    assert sorted(job.key for job, _ in answers) == list(range(12))
    assert len({value[2] for _, value in answers}) == 3


@pytest.mark.parametrize("state", ["idle", "hung"])
def test_processes_end_when_their_parent_is_killed(tmp_path, state):
    mark = tmp_path / "pid"
    second = f"Job(1, 'mark:{mark}')" if state == "hung" else "Job(1)"
    script = tmp_path / "parent.py"
    script.write_text(
        f"import sys, time, pathlib\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pool_jobs import Job, act\nfrom hcmi.video.pool import DecoderPool\n"
        "pool = DecoderPool(1, 1.0, act)\n"         # no `__main__` guard: children must not run this file again
        f"answers = pool.map([Job(0), {second}])\n"
        "print(next(answers)[1][2], flush=True)\n"
        "time.sleep(1000)\n")
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    if state == "hung":
        while not mark.exists():
            time.sleep(0.05)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 30
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(child)
