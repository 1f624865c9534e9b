"""Options that several verbs of the command line share, and how a verb shows what it made."""

import json
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
model_option = click.option("--model", default="models/hcmi", show_default=True, help="Folder of a trained model, or "
                            "the folder or name of a pretrained checkpoint.")
served_option = click.option("--model", help="Folder of a trained model, or the folder or name of a pretrained "
                             "checkpoint.  [default: the current release, or models/hcmi]")
precision_option = click.option("--precision", default="float32", show_default=True, help="What the model's towers are "
                                "stored in; the last two take half the memory.",
                                type=click.Choice(["float32", "bfloat16", "float16"]))
window_option = click.option("--window", metavar="SECONDS", type=float, help="Length of the windows of long videos, "
                             "with --videos.  [default: windows.seconds of params.yaml, or 4]")
overlap_option = click.option("--overlap", metavar="SECONDS", type=float, help="What neighbouring windows share.  "
                              "[default: windows.overlap_seconds of params.yaml, or 3]")
shots_option = click.option("--shots", is_flag=True, help="Divide long videos where the picture cuts, with --videos "
                            "(the extra hcmi[shots]).")
params_option = click.option("--params", default="params.yaml", show_default=True, help="Parameter file.")


def show(found: Any, as_json: bool, text: str | None = None) -> None:
    """Print what a verb made: as JSON, or for people as `text`, by default a line for each key."""
    if as_json:
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(f"{key}: {value}" for key, value in found.items()) if text is None else text)
