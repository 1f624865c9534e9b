"""The figures of a training run in DVCLive's files: metrics.json and one table per figure. DVC shows them."""

import subprocess
from collections.abc import Iterable
from pathlib import Path

from dvclive import Live

from hcmi.files import writing
from hcmi.train.speed import FIGURES


class TrainingLog(Live):
    """DVCLive's log of one training run in `folder`, which begins with the rows of `history`, those of earlier epochs.

    Raises: MachineError when it cannot be written.
    """

    def __init__(self, folder: str | Path, history: Iterable[dict] = ()):
        with writing(folder):
            super().__init__(str(folder), dvcyaml=False, save_dvc_exp=False)
        for row in history:
            self.log_epoch(row)

    def _init_dvc(self) -> None:
        """Connect to DVC only in a DVC repository with a commit.

        Without commits DVCLive would fail, and it would turn any other git repository into a DVC repository. It needs
        neither for what we log.
        """
        here = Path.cwd()
        if _has_commit() and any((folder / ".dvc").is_dir() for folder in (here, *here.parents)):
            super()._init_dvc()

    def log_epoch(self, row: dict) -> None:
        """Log one row of figures. Those of its speed are left out, so that equal runs give an equal dvc.lock."""
        with writing(self.dir):
            for name, value in row.items():
                if name not in ("epoch", *FIGURES):
                    self.log_metric(name, value)
            self.next_step()

    def end(self) -> None:
        with writing(self.dir):
            super().end()


def _has_commit() -> bool:
    try:
        return not subprocess.run(["git", "rev-parse", "--verify", "HEAD"], capture_output=True, check=False).returncode
    except FileNotFoundError:       # no git
        return False
