"""The verbs about what is served: add, promote, rollback, releases. `hcmi/cli.py` adds them to the command."""

import json

import click

from hcmi.options import json_option, model_option, params_option, show

releases_option = click.option("--releases", "releases_dir", default="releases", show_default=True,
                               help="Folder of releases.")
accepted_option = click.option("--accepted", default="data/accepted.json", show_default=True,
                               help="List of accepted batches.")
incoming_option = click.option("--incoming", default="data/incoming", show_default=True, help="Folder of new batches.")


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

      hcmi add /mnt/bucket/new

      hcmi add --batch 2026-11-30
    """
    from hcmi.config import load_params
    from hcmi.ingest import add as run

    show(run(folder=folder, batches=batches, incoming_dir=incoming, reports_dir=reports, releases_dir=releases_dir,
             accepted=accepted, params=load_params(params), quiet_s=quiet_seconds, judge=not accepted_only), as_json)


@click.command()
@model_option
@click.option("--export", default="export", show_default=True, help="Folder that `hcmi export` wrote.")
@click.option("--metrics", default="metrics/evaluate.json", show_default=True, help="Figures of the model.")
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
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else decision_text(found))


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
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else decision_text(found))


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
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else releases_text(table))


COMMANDS = (add, promote, rollback, releases)
