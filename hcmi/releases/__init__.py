"""What is served: `releases/<version>/` holds a model with its index and figures, and `releases/current` points at one.

The stages write beside it, so a run of the pipeline changes nothing that is served. `Releases` lists, adds, and
switches in one step; `hcmi/promote` decides.
"""

from hcmi.releases.store import CURRENT, ROOT, Release, Releases, copy_folder, now, releases_text, served_paths

__all__ = ["CURRENT", "ROOT", "Release", "Releases", "copy_folder", "now", "releases_text", "served_paths"]
