"""Runs whose worker was killed: `python -m flows.dead_runs POOL`, before the only worker of the pool starts again."""

import sys


def end_dead_runs(pool: str | None = None) -> None:
    """Mark the runs that are in progress according to the server as Crashed, and free the slots of all runs.

    Their processes ended with their worker, but the database still has them as Running. It also keeps their slots where
    the server has ended too: the leases that would free them were in its memory. No later run could start. So this must
    be called while none of these runs can be alive. `pool`: only those of one work pool, and what they have started.
    """
    # after the environment is set: importing reads it
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        FlowRunFilterParentTaskRunId,
        FlowRunFilterState,
        FlowRunFilterStateType,
        TaskRunFilter,
        TaskRunFilterState,
        TaskRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.client.schemas.objects import FlowRun, StateType
    from prefect.states import Crashed, State

    under_way = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    of_flows = FlowRunFilterState(type=FlowRunFilterStateType(any_=under_way))
    of_tasks = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=under_way)))
    of_pool = None if pool is None else WorkPoolFilter(name=WorkPoolFilterName(any_=[pool]))
    crashed: State = Crashed(message="The worker ended while this ran.")

    with get_client(sync_client=True) as client:
        def end(run: FlowRun) -> None:
            of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
            while tasks := client.read_task_runs(task_run_filter=of_tasks, flow_run_filter=of_run):
                for task in tasks:
                    started = FlowRunFilter(state=of_flows, parent_task_run_id=FlowRunFilterParentTaskRunId(
                        any_=[task.id]))
                    for inner in client.read_flow_runs(flow_run_filter=started):
                        end(inner)
                    client.set_task_run_state(task.id, crashed, force=True)
            client.set_flow_run_state(run.id, crashed, force=True)
            print(f"{run.name} was in progress when its worker ended; it is Crashed now.", flush=True)

        while found := client.read_flow_runs(flow_run_filter=FlowRunFilter(state=of_flows), work_pool_filter=of_pool):
            for run in found:
                end(run)
        for limit in client.read_global_concurrency_limits(limit=200):
            if limit.active_slots:
                client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("flows.dead_runs: need the name of a work pool.")
    end_dead_runs(sys.argv[1])
