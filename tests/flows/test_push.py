"""flows.remote on a toy project: what a run has made reaches the remote and other machines, and a remote that is away
ends no run.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo
from flow_world import environment, forget_outputs

from flows.stages import remote, reproduce

# The remote lies below a file at first, which refuses every push, and then below a folder.
PROGRAM = """
from pathlib import Path
from flows import remote
remote.push_to = remote.push_to.with_options(retries=1, retry_delay_seconds=0)
print(remote.push())
Path("disk").unlink()
print(remote.push())
remote.fetch("store")
try:
    remote.fetch("another")       # dvc does not know it
except remote.RemoteError as error:
    print(error)
"""


def push(toy: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PROGRAM], cwd=toy, env=environment(toy), text=True,
                          capture_output=True, timeout=600, check=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_push_is_tried_again_and_said_when_the_remote_is_away_and_done_by_the_next_run(toy):
    text = (toy / "dvc.yaml").read_text()
    (toy / "dvc.yaml").write_text(text.replace("cp in.txt one.txt", "echo ran >> ran.log; cp in.txt one.txt"))
    with Repo() as repo:
        repo.reproduce()
    assert remote() is None
    subprocess.run([sys.executable, "-m", "dvc", "remote", "add", "-q", "-d", "store", str(toy / "disk/store")],
                   check=True)
    (toy / "disk").write_text("not mounted")
    done = push(toy)
    first, second, not_fetched = done.stdout.splitlines()
    assert first.startswith("**Not pushed** to the remote `store`: ")
    assert first.endswith(" The next run tries again, and so does `dvc push`.")
    assert "Its last line: ERROR: unexpected error - [Errno 20] Not a directory" in first
    assert not_fetched.startswith("**Not fetched** from the remote `another`: ")
    assert not_fetched.endswith(" Every stale stage runs on this machine.")
    assert done.stderr.count("Task run failed with exception: ChildError") == 3         # twice and once
    assert second == "Pushed to the remote `store`."
    assert len(list((toy / "disk/store/files").glob("md5/*/*"))) == 2    # two and three are equal
    assert len(list((toy / "disk/store/runs").glob("*/*/*"))) == 3
    forget_outputs(toy)         # as on a machine that has the same inputs, and nothing else
    reproduce("one", pull=True)
    assert (toy / "one.txt").read_text() == "hello\n"
    assert (toy / "ran.log").read_text() == "ran\n"
