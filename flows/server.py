"""What both flows need from Prefect at their start: a server that answers, and names for runs."""

import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from prefect.settings import get_current_settings

from hcmi.config import NO_PARAMS


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
