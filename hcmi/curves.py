"""Training curves in DVCLive's files, which DVC shows and compares: metrics.json, and a table for each figure."""

from contextlib import suppress
from pathlib import Path

from dvclive import Live
from scmrepo.exceptions import SCMError

from hcmi.atomic import writing


class Curves(Live):
    """DVCLive's log of one training run in `folder`. Raises: MachineError when it cannot be written."""

    def __init__(self, folder: str | Path):
        with writing(folder):
            super().__init__(str(folder), dvcyaml=False, save_dvc_exp=False)

    def _init_dvc(self) -> None:
        """Without a DVC repository, none: DVCLive would make one of any git repository. Without a commit it fails
        when it asks git for the last one, which matters for experiments alone."""
        here = Path.cwd()
        if any((folder / ".dvc").is_dir() for folder in (here, *here.parents)):
            with suppress(SCMError):
                super()._init_dvc()

    def log_epoch(self, row: dict) -> None:
        with writing(self.dir):
            for name, value in row.items():
                if name not in ("epoch", "train/seconds"):      # no clock in what DVC keeps: equal runs, equal dvc.lock
                    self.log_metric(name, value)
            self.next_step()

    def end(self) -> None:
        with writing(self.dir):
            super().end()
