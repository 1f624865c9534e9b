"""How answers are shown: as JSON, as a table, and an explanation as a file."""

import json
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hcmi.errors import ConfigError, shown
from hcmi.files import ask_to_write, atomic_file, project_path
from hcmi.search.explain import Explanation
from hcmi.search.times import span_text
from hcmi.types import Hit, path_text

EXPLANATION_SUFFIXES = (".json", ".png", ".svg", ".pdf")


def hit_record(hit: Hit) -> dict[str, Any]:
    """For JSON: rank, video_id, path, score, start_s, end_s, `levels` with the score of each level, and `more`.

    Bytes of the path that are no UTF-8 are escaped (`path_text`).
    """
    return asdict(hit) | {"path": path_text(hit.path)}


def hits_text(hits: Sequence[Hit]) -> str:
    """A table for people."""
    if not hits:
        return "Nothing found: the index is empty, or no video passes the filters."
    paths = [shown(project_path(hit.path)) for hit in hits]
    width = max(map(_columns, paths))
    spans = [span_text(hit.start_s, hit.end_s) for hit in hits]
    left = max(7, *(span.index(" ") for span in spans))
    lines = []
    for hit, path, span in zip(hits, paths, spans, strict=True):
        levels = "  ".join(f"{name.replace('_', '-')} {value:.3f}" for name, value in hit.levels.items())
        path += " " * (width - _columns(path))
        span = " " * (left - span.index(" ")) + span
        lines.append(f"{hit.rank:3d}  {path}  {span}  score {hit.score:.3f}  ({levels})")
        if hit.more:
            others = ", ".join(span_text(moment.start_s, moment.end_s) for moment in hit.more)
            lines.append(f"{'':3}  {'':{width}}  also {others}")
    return "\n".join(lines)


def _columns(text: str) -> int:
    """The columns of a terminal that a text takes: two for a Chinese, Japanese or Korean character and an emoji."""
    seen = [char for char in text if unicodedata.category(char) not in ("Mn", "Me", "Cf")]
    return len(seen) + sum(unicodedata.east_asian_width(char) in "WF" for char in seen)


def missing_files(hits: Sequence[Hit]) -> list[str]:
    """One line for each hit whose video has been deleted or moved since it was indexed."""
    return [f"{hit.path}: need the video, got no such file. Put it back, or export again without it."
            for hit in hits if not os.path.exists(hit.path)]


def check_explanation_path(path: str, name: str = "path") -> None:
    """See that an explanation can be written to `path`, before the search is run. `name`: as the message calls it.

    Raises: ConfigError when the ending is none of EXPLANATION_SUFFIXES; MachineError when the file cannot be written.
    """
    if Path(path).suffix.lower() not in EXPLANATION_SUFFIXES:
        raise ConfigError(f"{name} {path}: need a name ending in .png, .svg, .pdf or .json, got "
                          f"{Path(path).suffix or 'no ending'!r}. Rename the file.")
    ask_to_write(files=[path])


def write_explanation(explanation: Explanation, path: str) -> None:
    """Write JSON or a picture, depending on the ending of `path`.

    Raises: DecodeError when `path` is a picture and the video is missing or cannot be decoded.
    """
    if Path(path).suffix.lower() == ".json":
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(explanation.record(), indent=1, ensure_ascii=False), encoding="utf-8")
        return
    from hcmi.search.explanation_plot import draw_explanation  # matplotlib takes a second to load

    draw_explanation(explanation, path)
