"""A real server: retrain is started once, with a cool-down, and a team is told through a block of Prefect's."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Empty, Queue

import pytest
from flow_world import Flows, environment, wait_for

from flows import drift_watch, ingest, notify, promote
from flows.pipeline import pipeline
from hcmi.incoming import ACTIONS, Ledger, look

BLOCK = """
from prefect.blocks.notifications import CustomWebhookNotificationBlock
message = {{"subject": "{{{{subject}}}}", "body": "{{{{body}}}}"}}
CustomWebhookNotificationBlock(name="team", url="{url}", json_data=message).save("team")
"""


def test_every_flow_and_every_state_that_asks_for_a_person_is_told():
    flows = (ingest.ingest, drift_watch.drift_watch, pipeline, promote.promote)
    assert set(notify.FLOWS) == {flow.name for flow in flows}
    states = {row.state for row in ACTIONS.values()} | set(promote.STATES.values()) | {"Failed", "Crashed"}
    assert set(notify.TOLD) == states - {"Completed", "Changed"}


@pytest.fixture
def messages() -> Iterator[tuple[str, Queue]]:
    """An address that takes messages, and the messages that have come."""
    came: Queue = Queue()

    class Takes(BaseHTTPRequestHandler):
        def do_POST(self):
            came.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Takes)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


def hurt(name: str) -> None:
    """A batch that has been judged, and hurts search."""
    folder = Path("data/incoming") / name
    folder.mkdir(parents=True)
    (folder / "a.mp4").write_text(name)
    ledger = Ledger(ingest.REPORTS)
    ledger.record(ledger.content(folder, look(folder)), name, "search hurt")


def ends_as(flows: Flows, flow: str, kind: str, state: str, message: str) -> None:
    """A run of this flow, which this process ends."""
    [found] = flows.ask("flows/filter", {"flows": {"name": {"any_": [flow]}}})
    run = flows.ask("flow_runs/", {"flow_id": found["id"], "name": f"{flow} {state}"})["id"]
    flows.ask(f"flow_runs/{run}/set_state", {"force": True, "state": {"type": kind, "name": state, "message": message}})


def notify_by(flows: Flows, *arguments: str) -> subprocess.CompletedProcess:
    variables = {**environment(flows.project), "PREFECT_API_URL": f"http://127.0.0.1:{flows.port}/api"}
    return subprocess.run([sys.executable, *arguments], env=variables, text=True, capture_output=True, timeout=300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_retrain_is_started_once_and_the_team_is_told(start, toy, messages):
    address, came = messages
    (toy / "data").mkdir(exist_ok=True)
    (toy / "data/accepted.json").write_text("[]\n")
    flows = start()
    done = notify_by(flows, "-m", "flows.notify", "custom-webhook/team")
    assert done.returncode == 1
    assert done.stderr.startswith("flows.notify: need a notification block called 'custom-webhook/team', got none.")
    assert notify_by(flows, "-c", BLOCK.format(url=address)).returncode == 0
    for _ in range(2):      # the second time in place of the first
        assert notify_by(flows, "-m", "flows.notify", "custom-webhook/team").returncode == 0
    assert [one["name"] for one in flows.ask("automations/filter", {})].count(notify.NAME) == 1

    hurt("worse")
    for _ in range(2):
        assert flows.end_of(flows.trigger("ingest/ingest", quiet_seconds=0)) == "COMPLETED", flows.output()[-4000:]
    hurt("worse too")       # within the cool-down
    run = flows.trigger("ingest/ingest", quiet_seconds=0)
    assert flows.end_of(run) == "COMPLETED"
    assert "retrain for worse too: not before" in flows.ask(f"flow_runs/{run}")["state"]["message"]
    [retrain] = flows.ask("flow_runs/filter", {"flows": {"name": {"any_": ["pipeline"]}}})
    assert flows.end_of(retrain["id"]) == "COMPLETED"
    assert (toy / "three.txt").is_file()

    ends_as(flows, "ingest", "COMPLETED", "Changed", "of no interest")
    ends_as(flows, "ingest", "COMPLETED", "SearchHurt", "monday: search hurt. R@1 fell.")
    ends_as(flows, "pipeline", "FAILED", "Failed", "flows.pipeline: need a disk, got a full one.")
    told = sorted((came.get(timeout=120) for _ in range(2)), key=lambda message: message["subject"])
    assert [one["subject"] for one in told] == ["HCMI: ingest ended as SearchHurt", "HCMI: pipeline ended as Failed"]
    first, link = told[0]["body"].split("\n")
    assert first == "monday: search hurt. R@1 fell."
    assert link.startswith(f"http://127.0.0.1:{flows.port}/")
    with pytest.raises(Empty):
        came.get(timeout=3)
    flows.stop()
    assert wait_for(lambda: flows.processes() == [], 60)
