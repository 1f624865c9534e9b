"""Jobs and the functions that run them."""

import pickle
import subprocess
import sys
import time

import numpy as np
import pytest
import simplejpeg
from video_files import STEP, write_grey

from hcmi.video import DecodeJob, EncodeJob, ProbeJob, encode_job, measure_job, probe_job
from hcmi.video.jobs import FULL_COLOUR_BELOW


def test_crashed_job_is_run_again_with_pyav_once():
    job = EncodeJob("key", "v.mp4", 5, 32, 1.0, 2.0, quality=90)
    again = job.after_crash()
    assert again == EncodeJob("key", "v.mp4", 5, 32, 1.0, 2.0, "pyav", quality=90)
    assert again.after_crash() is None
    assert DecodeJob("key", "v.mp4", 5, 32, decoder="decord").after_crash() is None


def test_probe_job_reads_the_headers(tmp_path):
    job = pickle.loads(pickle.dumps(ProbeJob(("key", 1), str(write_grey(tmp_path / "v.mp4", num_frames=20)))))
    assert (job.key, probe_job(job).duration_s) == (("key", 1), pytest.approx(2.0))


@pytest.mark.parametrize(("size", "subsampling"), [(FULL_COLOUR_BELOW - 2, "444"), (FULL_COLOUR_BELOW, "420")])
def test_frames_are_jpeg_files_with_full_colour_when_small(tmp_path, size, subsampling):
    video = str(write_grey(tmp_path / "v.mp4", num_frames=20))
    clip = encode_job(EncodeJob(0, video, 5, size, quality=95))
    for index, jpeg in zip((2, 6, 10, 14, 18), clip.frames, strict=True):
        assert simplejpeg.decode_jpeg_header(jpeg) == (size, size, "YCbCr", subsampling)
        assert np.abs(simplejpeg.decode_jpeg(jpeg).mean() - index * STEP) < 2


def test_measured_sizes_are_those_of_the_encoded_frames(tmp_path):
    job = EncodeJob(0, str(write_grey(tmp_path / "v.mp4", num_frames=20)), 5, 32, quality=90)
    started = time.perf_counter()
    measured = measure_job(job)
    assert 0 < measured.seconds <= time.perf_counter() - started
    assert measured.jpeg_bytes == tuple(map(len, encode_job(job).frames))
    assert (measured.duration_s, measured.decoder) == (pytest.approx(2.0), "decord")


def test_child_process_imports_neither_torch_nor_another_room():
    """It starts in a third of a second; torch alone takes seconds."""
    program = ("import hcmi.video.jobs, sys; print(sorted(name for name in sys.modules if name == 'torch' "
               "or name.startswith('hcmi.') and not name.startswith('hcmi.video')))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['hcmi.errors', 'hcmi.files']"
