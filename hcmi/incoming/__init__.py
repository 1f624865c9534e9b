"""Batches of new videos in data/incoming: how they get there, which have been judged, what follows from the verdict."""

from hcmi.incoming.acceptance import SEARCHED, accept_judged, accept_named, judged_batches, searched_batches
from hcmi.incoming.batches import Ledger, arrivals, complete, find_batches, is_query_log, look
from hcmi.incoming.bucket import is_address
from hcmi.incoming.inbox import QUARANTINE, Collected, collect
from hcmi.incoming.judging import judge_new, judging_alone
from hcmi.incoming.verdicts import ACTIONS, Action, Verdict, action, worst

__all__ = [
    "ACTIONS", "QUARANTINE", "SEARCHED", "Action", "Collected", "Ledger", "Verdict", "accept_judged", "accept_named",
    "action", "arrivals", "collect", "complete", "find_batches", "is_address", "is_query_log", "judge_new",
    "judged_batches", "judging_alone", "look", "searched_batches", "worst",
]
