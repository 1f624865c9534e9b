"""A project outside the clone: `hcmi init` makes its files, and its first stage notes which code is installed."""

from hcmi.project.new_project import MINE, in_git, init_project, next_steps

__all__ = ["MINE", "in_git", "init_project", "next_steps"]
