"""Batches of new videos in data/incoming: which are complete, which have been judged, what follows from the verdict."""

from hcmi.incoming.batches import Ledger, complete, find_batches, look
from hcmi.incoming.verdicts import ACTIONS, Action, action, worst

__all__ = ["ACTIONS", "Action", "Ledger", "action", "complete", "find_batches", "look", "worst"]
