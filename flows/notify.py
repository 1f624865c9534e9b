"""Messages to a team: `python -m flows.notify slack-webhook/team` makes an automation on the Prefect server.

From then on the server sends a message through that block of Prefect's whenever a run ends in one of the states of
`TOLD`. Called again, with this block or another one, it replaces the automation.
"""

import sys
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.events import AutomationCore, EventTrigger, Posture
from prefect.events.actions import SendNotification
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows.server import check_server

NAME = "hcmi: tell the team"
FLOWS = ["ingest", "drift-watch", "pipeline", "promote"]
# What somebody has to act on or wants to know. Completed and Changed are left out: nothing follows from them.
TOLD = ["SearchHurt", "CannotTell", "Promoted", "Refused", "Failed", "Crashed"]


def automation(block_id: UUID) -> AutomationCore:
    """Send a message through this block for each run of a flow of `FLOWS` that ends in a state of `TOLD`."""
    trigger = EventTrigger(
        expect={f"prefect.flow-run.{state}" for state in TOLD},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={"prefect.resource.role": "flow", "prefect.resource.name": FLOWS},
        for_each={"prefect.resource.id"}, posture=Posture.Reactive, threshold=1)
    return AutomationCore(name=NAME, trigger=trigger, description=f"Runs that end as {', '.join(TOLD)}.", actions=[
        SendNotification(block_document_id=block_id, subject="HCMI: {{ flow.name }} ended as {{ flow_run.state.name }}",
                         body="{{ flow_run.state.message }}\n{{ flow_run|ui_url }}")])


def tell(block: str) -> str:
    """Make or replace the automation; `block`: `<type>/<name>`, as `prefect block ls` lists it. Returns its name.

    Ends the process with one line when there is no such block.
    """
    kind, _, name = block.partition("/")
    with get_client(sync_client=True) as client:
        try:
            found = client.read_block_document_by_name(name, kind)
        except ObjectNotFound:
            sys.exit(f"flows.notify: need a notification block called {block!r}, got none. Make one on the page Blocks "
                     "of Prefect, or correct the name (`prefect block ls`).")
        old = client.read_automations_by_name(NAME)
        client.create_automation(automation(found.id))
        for one in old:     # afterwards: a kill in between means two messages, not none
            client.delete_automation(one.id)
    return NAME


if __name__ == "__main__":
    if len(sys.argv) != 2 or "/" not in sys.argv[1]:
        sys.exit("flows.notify: need a block, such as slack-webhook/team. `prefect block ls` lists them.")
    if get_current_settings().api.url is None:
        sys.exit("flows.notify: need PREFECT_API_URL, got none. Start `make flows`, and set it as that says.")
    check_server()
    print(f"{tell(sys.argv[1])}: {', '.join(TOLD)} of {', '.join(FLOWS)}, through {sys.argv[1]}")
