"""flows.remote on a toy project: what a run has made reaches the remote, and a remote that is away ends no run."""

import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from flow_world import environment

from flows.stages import remote

# The remote lies below a file at first, which refuses every push, and then below a folder.
PROGRAM = """
from pathlib import Path
from flows import remote
remote.push_to = remote.push_to.with_options(retries=1, retry_delay_seconds=0)
print(remote.push())
Path("disk").unlink()
print(remote.push())
"""


def push(toy: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PROGRAM], cwd=toy, env=environment(toy), text=True,
                          capture_output=True, timeout=600, check=True)


@pytest.mark.timeout(900)
def test_push_is_tried_again_and_said_when_the_remote_is_away_and_done_by_the_next_run(toy):
    with Repo() as repo:
        repo.reproduce()
    assert remote() is None
    subprocess.run([sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "store", str(toy / "disk/store")],
                   check=True)
    (toy / "disk").write_text("not mounted")
    done = push(toy)
    first, second = done.stdout.splitlines()
    assert first.startswith("**Not pushed** to the remote `store`: ")
    assert first.endswith(" The next run tries again, and so does `dvc push`.")
    assert "Its last line: ERROR: unexpected error - [Errno 20] Not a directory" in first
    assert done.stderr.count("Task run failed with exception: ChildError") == 2         # once, and once again
    assert second == "Pushed to the remote `store`."
    assert len([path for path in (toy / "disk/store").rglob("*") if path.is_file()]) == 2    # two and three are equal
