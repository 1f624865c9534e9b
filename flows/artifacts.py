"""What a run did, as an artifact on its page in Prefect."""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |"
                     for line in lines)


def show(key: str, title: str, *parts: str) -> None:
    """Put these paragraphs on the page of the run; `key`: lower case letters and dashes, one for each kind of run."""
    create_markdown_artifact(key=key, markdown="\n\n".join([f"# {title}", *filter(None, parts)]), description=title)
