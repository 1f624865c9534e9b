"""What both flows ask of Prefect before they begin: that the server answers, and a name that says what a run is."""

import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import datetime

from prefect.settings import get_current_settings


def check_server() -> None:
    """End the process with one line when the server that PREFECT_API_URL names does not answer; without one do nothing.

    Prefect itself tells this in a hundred lines. Without the setting it starts a temporary server of its own.
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
    """For `flow_run_name`: what runs, and the local time of its start."""
    return lambda: f"{what} {datetime.now():%Y-%m-%d %H:%M}"
