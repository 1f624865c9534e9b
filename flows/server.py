"""What the flows need at their start: a project, a server that answers, and names for runs."""

import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import Flow, State
from prefect.settings import get_current_settings

from hcmi.config import NO_PARAMS


def run(flow: Flow, *arguments: Any) -> State:
    """Run a flow as a command, `python -m flows.<its name>`. Returns how it ended.

    When it cannot start, or fails, this ends the process with one line and exit code 1.
    """
    check_project()
    check_server()
    end: Any = flow(*arguments, return_state=True)
    if end.is_failed():
        why = end.result(raise_on_failure=False) or end.message     # the error; a flow that returned Failed has none
        sys.exit(f"flows.{flow.name.replace('-', '_')}: {why}")
    return end


def check_project() -> None:
    """End the process with one line when the working folder is not that of a project: nothing would be found in it."""
    if not Path("dvc.yaml").is_file():
        sys.exit(f"flows: need a dvc.yaml in the working folder, got none in {Path.cwd()}. {NO_PARAMS}")


def check_server() -> None:
    """End the process with one line when the server at PREFECT_API_URL does not answer.

    Prefect itself prints a hundred lines in this case. Without PREFECT_API_URL it starts a temporary server, and this
    function does nothing.
    """
    url = get_current_settings().api.url
    if url is None:
        return
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=30):
            return
    except (urllib.error.URLError, OSError, ValueError) as error:
        sys.exit(f"flows: need the Prefect server at {url}, got: {getattr(error, 'reason', error)}. Start it "
                 "(`make flows`), correct PREFECT_API_URL, or unset it to run without a server.")


def run_name(what: str) -> Callable[[], str]:
    """For `flow_run_name`: `what`, and the local time of the start."""
    return lambda: f"{what} {datetime.now():%Y-%m-%d %H:%M}"
