"""`python -m flows.pipeline` as people run it, with no server."""

import subprocess
import sys
from pathlib import Path

from flow_world import environment


def run_flow(project: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "flows.pipeline"], cwd=project, env=environment(project), text=True,
                          capture_output=True, timeout=240)


def test_flow_runs_what_is_stale_then_nothing_when_run_after_dvc(toy):
    first = run_flow(toy)
    assert first.stdout.splitlines()[-3:] == ["one: ran", "two: ran", "three: ran"], first.stderr
    assert "telemetry" not in first.stderr
    lock = Path("dvc.lock").read_bytes()
    dvc = Path(sys.executable).parent / "dvc"
    again = subprocess.run([dvc, "repro"], env=environment(toy), text=True, capture_output=True, check=True)
    assert "Running stage" not in again.stdout + again.stderr
    second = run_flow(toy)
    assert second.stdout.splitlines()[-3:] == ["one: fresh", "two: fresh", "three: fresh"], second.stderr
    assert "Running stage" not in second.stderr
    assert Path("dvc.lock").read_bytes() == lock
