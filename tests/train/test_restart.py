"""A run that is killed with SIGKILL at random moments ends, bit for bit, as an undisturbed one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("killed_runs.py")


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_train_ends_as_an_undisturbed_run_when_it_is_killed_at_random_moments(films, tmp_path, kills):
    done = subprocess.run([sys.executable, str(PROGRAM), str(films), str(tmp_path), "seed 0", str(kills)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(map(int, re.findall(r"(\d+) kills", done.stdout))) == kills
