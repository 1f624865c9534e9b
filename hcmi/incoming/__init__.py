"""Batches of new videos in data/incoming: how they get there, which have been judged, what follows from the verdict."""

from hcmi.incoming.acceptance import accept_judged, accept_named, judged_batches
from hcmi.incoming.batches import Ledger, complete, find_batches, look
from hcmi.incoming.inbox import Collected, collect
from hcmi.incoming.verdicts import ACTIONS, Action, Verdict, action, worst

__all__ = [
    "ACTIONS", "Action", "Collected", "Ledger", "Verdict", "accept_judged", "accept_named", "action", "collect",
    "complete", "find_batches", "judged_batches", "look", "worst",
]
