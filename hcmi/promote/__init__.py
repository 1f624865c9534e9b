"""The gate before what is served: the newly trained model replaces the served one only if it is not worse.

`promote` compares both on the frozen test set and on the newest accepted batches, makes a release of the new one and
lets `releases/current` point at it. `rollback` lets it point at an earlier release again.
"""

from hcmi.promote.gate import Difference, decide
from hcmi.promote.stage import decision_text, promote, rollback

__all__ = ["Difference", "decide", "decision_text", "promote", "rollback"]
