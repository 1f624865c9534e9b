"""The one command, `hcmi`. Each verb reads params.yaml, calls one stage module, and prints what it made.

Exit codes: 0 done, 1 failed (one line on stderr), 2 wrong use. Stage modules are imported inside the verbs, so that
`hcmi --help` answers at once.
"""

import json
import sys

import click

from hcmi import __version__
from hcmi.errors import HcmiError


class _Group(click.Group):
    """Keeps the order of the pipeline in --help and turns HcmiError into one line and exit code 1."""

    def list_commands(self, ctx):
        return list(self.commands)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except HcmiError as error:
            click.echo(f"hcmi: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn videos and captions into a search engine, one stage at a time."""


def _show(summary: dict, as_json: bool) -> None:
    if as_json:
        json.dump(summary, sys.stdout, indent=2, ensure_ascii=False)
        click.echo()
    else:
        for key, value in summary.items():
            click.echo(f"{key}: {value}")


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")
params_option = click.option("--params", default="params.yaml", show_default=True, help="Parameter file.")


if __name__ == "__main__":
    main()
