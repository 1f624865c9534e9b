"""The search page and its JSON interface, as a server on one machine.

`serve` answers from a `Retriever`, and changes to a retrained model and its new index without a restart.
"""

from hcmi.serve.app import serve

__all__ = ["serve"]
