"""What the flows' tests share."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def environment(project: Path) -> dict[str, str]:
    """This environment's commands first; Prefect's files inside the project; no other server."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return {**kept, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DO_NOT_TRACK": "1",
            "PREFECT_HOME": str(project / ".prefect"), "PYTHONPATH": str(ROOT)}
