"""The verbs about what is searched and served; `hcmi/cli.py` adds them to the command."""

import click

from hcmi.errors import shown
from hcmi.options import (
    json_option,
    model_option,
    overlap_option,
    params_option,
    precision_option,
    served_option,
    shots_option,
    show,
    window_option,
)

releases_option = click.option("--releases", "releases_dir", default="releases", show_default=True,
                               help="Folder of releases.")
accepted_option = click.option("--accepted", default="data/accepted.json", show_default=True,
                               help="List of accepted batches.")
incoming_option = click.option("--incoming", default="data/incoming", show_default=True, help="Folder of new batches.")


@click.command()
@click.argument("query")
@click.option("--top", default=10, show_default=True, help="How many answers.")
@click.option("--videos", help="Search this folder of videos directly; no pipeline needed.")
@click.option("--index", help="Search index.  [default: the current release, or search.uri of params.yaml]")
@served_option
@click.option("--tag", "tags", multiple=True, metavar="NAME=VALUE", help="Only videos with this tag; may be repeated.")
@click.option("--min-seconds", type=float, help="Only clips at least this long; a window of a long video is a clip.")
@click.option("--max-seconds", type=float, help="Only clips at most this long.")
@click.option("--explain", metavar="FILE", help="Write why the first answer was found: .png, .svg, .pdf or .json.")
@precision_option
@window_option
@overlap_option
@shots_option
@params_option
@json_option
def search(query: str, top: int, videos: str | None, index: str | None, model: str | None, tags: tuple[str, ...],
           min_seconds: float | None, max_seconds: float | None, explain: str | None, precision: str,
           window: float | None, overlap: float | None, shots: bool, params: str, as_json: bool) -> None:
    """Find the videos, and the moments in them, that QUERY describes.

    Examples:

      hcmi search "a dog jumps into water" --top 5 --json

      hcmi search "red car" --videos ./my_videos

      hcmi search "red car" --videos ./my_videos --model openai/clip-vit-base-patch32

      hcmi search "red car" --tag place=street --explain why.png
    """
    import hcmi.search as searching

    searching.check_query(query)
    searching.check_top(top, "--top")
    if explain is not None:
        searching.check_explanation_path(explain, "--explain")
    wanted = searching.parse_tags(tags, "--tag")
    searching.check_number(min_seconds, "--min-seconds")
    searching.check_number(max_seconds, "--max-seconds")
    retriever = searching.open_retriever(model, index, videos, params, precision, window, overlap, shots,
                                         query=query)
    hits = retriever.search(query, top, wanted, min_seconds, max_seconds)
    tag_notes = [] if hits else retriever.tag_notes(wanted)
    for note in (*retriever.notes, *retriever.query_notes(query), *tag_notes, *searching.missing_files(hits)):
        click.echo(f"note: {shown(note)}", err=True)
    show([searching.hit_record(hit) for hit in hits], as_json, searching.hits_text(hits))
    if explain and hits:
        searching.write_explanation(retriever.explain(query, hits[0]), explain)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="Answer to this name too, such as that of a "
              "proxy; may be repeated.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--videos", help="Search this folder of videos directly; no pipeline needed.")
@click.option("--index", help="Search index.  [default: the current release, or search.uri of params.yaml]")
@served_option
@precision_option
@window_option
@overlap_option
@shots_option
@params_option
def serve(host: str, hosts: tuple[str, ...], port: int, videos: str | None, index: str | None, model: str | None,
          precision: str, window: float | None, overlap: float | None, shots: bool, params: str) -> None:
    """Serve the search page: type a query, watch the moment in each video, see why it was found.

    Examples:

      hcmi serve

      hcmi serve --videos ./my_videos --port 8080
    """
    from hcmi.search import open_retriever
    from hcmi.serve import serve as run

    retriever = open_retriever(model, index, videos, params, precision, window, overlap, shots, follow=True)
    for note in retriever.notes:
        click.echo(f"note: {shown(note)}", err=True)
    run(retriever, host, port, click.echo, hosts)


@click.command()
@click.argument("folder", required=False)
@click.option("--batch", "batches", multiple=True, metavar="NAME", help="Add this batch whatever its verdict; may be "
              "repeated.")
@click.option("--accepted-only", is_flag=True, help="Judge nothing; add what has been accepted.")
@click.option("--quiet-seconds", default=60.0, show_default=True, help="A file that has not changed for so long is "
              "whole.")
@click.option("--reports", default="reports/watch", show_default=True, help="Folder of drift reports.")
@releases_option
@accepted_option
@incoming_option
@params_option
@json_option
def add(folder: str | None, batches: tuple[str, ...], accepted_only: bool, quiet_seconds: float, reports: str,
        releases_dir: str, accepted: str, incoming: str, params: str, as_json: bool) -> None:
    """Make new videos searchable: those of FOLDER become a batch, and each batch is judged and, if it may be, added.

    Examples:

      hcmi add /mnt/videos/new

      hcmi add s3://bucket/new

      hcmi add --batch 2026-11-30
    """
    from hcmi.config import load_params
    from hcmi.ingest import add as run
    from hcmi.ingest import added_text

    found = run(folder=folder, batches=batches, incoming_dir=incoming, reports_dir=reports, releases_dir=releases_dir,
                accepted=accepted, params=load_params(params), quiet_s=quiet_seconds, judge=not accepted_only)
    show(found, as_json, added_text(found, reports, incoming))


@click.command()
@model_option
@click.option("--export", default="export", show_default=True, help="Folder that `hcmi export` wrote.")
@click.option("--metrics", default="metrics/evaluate.json", show_default=True,
              help="File of figures that `hcmi evaluate` wrote.")
@click.option("--plots", default="plots", show_default=True, help="Folder that `hcmi evaluate` wrote.")
@click.option("--shards", default="data/shards", show_default=True, help="Folder that `hcmi shards` wrote.")
@releases_option
@accepted_option
@incoming_option
@click.option("--not-worse", is_flag=True, help="Promote also if it is not shown to be better.")
@click.option("--again", is_flag=True, help="Promote also if it has been rolled back.")
@params_option
@json_option
def promote(model: str, export: str, metrics: str, plots: str, shards: str, releases_dir: str, accepted: str,
            incoming: str, not_worse: bool, again: bool, params: str, as_json: bool) -> None:
    """Serve the newly trained model, if it is not worse than the one that is served.

    Example: hcmi promote
    """
    from hcmi.config import load_params
    from hcmi.promote import decision_text
    from hcmi.promote import promote as run

    found = run(model_dir=model, export_dir=export, metrics=metrics, plots_dir=plots, shards_dir=shards,
                releases_dir=releases_dir, accepted=accepted, incoming_dir=incoming, params=load_params(params),
                must_be_better=not not_worse, again=again)
    show(found, as_json, decision_text(found))


@click.command()
@click.argument("version", required=False)
@releases_option
@json_option
def rollback(version: str | None, releases_dir: str, as_json: bool) -> None:
    """Serve an earlier release again: VERSION, or the one that the served release replaced.

    Example: hcmi rollback v3
    """
    from hcmi.promote import decision_text
    from hcmi.promote import rollback as run

    found = run(releases_dir=releases_dir, version=version)
    show(found, as_json, decision_text(found))


@click.command()
@releases_option
@json_option
def releases(releases_dir: str, as_json: bool) -> None:
    """List the releases, with the figures of each and why it was promoted.

    Example: hcmi releases
    """
    from hcmi.releases import Releases, releases_text

    table = Releases(releases_dir).table()
    found = {"current": next((row["version"] for row in table if row["current"]), None), "releases": table}
    show(found, as_json, releases_text(table))


COMMANDS = (search, serve, add, promote, rollback, releases)
