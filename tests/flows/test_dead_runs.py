"""flows.dead_runs on a server of its own: what a killed worker has left ends, and what another pool runs goes on."""

import subprocess
import sys

import pytest
from flow_world import environment

PROGRAM = """
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.states import Running, Scheduled

from flows.dead_runs import end_dead_runs

@flow
def outer(): pass

@flow
def inner(): pass

@task
def stage(): pass

with get_client(sync_client=True) as client:
    def start(pool):
        run = client.create_flow_run(outer, state=Running(), work_pool_name=pool)
        task_run = client.create_task_run(stage, run.id, dynamic_key="0", state=Running())
        return run.id, task_run.id, client.create_flow_run(inner, parent_task_run_id=task_run.id, state=Running()).id

    def states(run, task_run, started):
        found = client.read_flow_run(run), client.read_task_run(task_run), client.read_flow_run(started)
        return [one.state.type.value for one in found]

    for pool in ("here", "elsewhere"):
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="tag:gpu", limit=1, active_slots=1))
    here, elsewhere = start("here"), start("elsewhere")
    waiting = client.create_flow_run(outer, state=Scheduled(), work_pool_name="here").id
    end_dead_runs("here")
    print(states(*here), states(*elsewhere), client.read_flow_run(waiting).state.type.value)
    print(client.read_global_concurrency_limit_by_name("tag:gpu").active_slots)
    end_dead_runs()
    print(states(*elsewhere))
"""


@pytest.mark.slow
def test_runs_of_one_pool_or_of_all_are_crashed_with_what_they_have_started(toy):
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=toy, env=environment(toy), text=True,
                          capture_output=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    crashed, running = ["CRASHED"] * 3, ["RUNNING"] * 3
    lines = [line for line in done.stdout.splitlines() if "was in progress" not in line]
    assert lines == [f"{crashed} {running} SCHEDULED", "0", f"{crashed}"]
