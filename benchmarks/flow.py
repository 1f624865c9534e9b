"""Seconds that Prefect adds to a run: the flow with nothing to do, minus DVC's check of every stage in the same minute.

The Prefect server is already running, as with `make flows`. Each run is a new process; the best of several runs counts.

    python benchmarks/flow.py [--quick]
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import table, write_result
from pipeline import QUICK, fresh_copy

DVC_ONLY = "from flows.stages import is_stale, plan; assert not [step for step in plan() if is_stale(step.name)]"


def seconds(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs instead of five")
    options = parser.parse_args()
    runs = 2 if options.quick else 5
    with tempfile.TemporaryDirectory(prefix="hcmi-flow-") as name, socket.socket() as probe:
        folder = Path(name)
        environment = {**fresh_copy(folder, QUICK), "PREFECT_HOME": str(folder / ".hcmi/prefect")}
        subprocess.run(["dvc", "repro"], cwd=folder, env=environment, check=True, stdout=sys.stderr)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        log = folder / "up.log"
        up = subprocess.Popen([sys.executable, "-u", "-m", "flows.up", "--port", str(port)], cwd=folder,
                              env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT)
        try:
            while "make flows: ready" not in log.read_text():
                if up.poll() is not None:
                    sys.exit(f"benchmarks/flow.py: need a server, got:\n{log.read_text()}")
                time.sleep(0.5)
            served = {**environment, "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}
            flow = [seconds([sys.executable, "-m", "flows.pipeline"], folder, served) for _ in range(runs)]
            dvc = [seconds([sys.executable, "-c", DVC_ONLY], folder, environment) for _ in range(runs)]
        finally:
            up.terminate()
            up.wait(60)
    figures = {"overhead_seconds": min(flow) - min(dvc), "flow_seconds": min(flow), "dvc_seconds": min(dvc)}
    print(table(["run with nothing to do", "seconds"], [("flow, server running", min(flow)), ("DVC alone", min(dvc)),
                                                        ("overhead", figures["overhead_seconds"])]))
    print(write_result("flow", figures, options.quick))


if __name__ == "__main__":
    main()
