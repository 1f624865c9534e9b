"""Write the parts of the documents that follow from the code: `make docs`. A test fails when they are out of date.

docs/cli.md holds the --help of every verb. The table of stages in docs/pipeline.md is made from dvc.yaml.
"""

from pathlib import Path

import click
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- stages: made by docs/generate.py -->\n", "<!-- end of stages -->\n"


def cli_page() -> str:
    from hcmi.cli import main

    parts = ["# The command line\n\nMade from `--help` by `make docs`.\n"
             "Exit codes: 0 done, 1 failed (one line on stderr), 2 wrong use, 130 stopped by Ctrl-C.\n",
             f"## hcmi\n\n```text\n{_help(main, 'hcmi')}\n```\n"]
    parts += [f"## hcmi {name}\n\n```text\n{_help(command, f'hcmi {name}')}\n```\n"
              for name, command in main.commands.items()]
    return "\n".join(parts)


def stage_table() -> str:
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    lines = ["| stage | what it does | reads | writes |", "|---|---|---|---|"]
    for name, stage in stages.items():
        reads = [dep for dep in stage["deps"] if dep != f"code/{name}.txt"]     # every stage has one
        writes = [next(iter(out)) if isinstance(out, dict) else out
                  for kind in ("outs", "metrics", "plots") for out in stage.get(kind, [])]
        cells = [f"`{name}`", stage["desc"], *(", ".join(f"`{path}`" for path in paths) for paths in (reads, writes))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def pipeline_page() -> str:
    before, _, rest = (ROOT / "docs/pipeline.md").read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    return before + BEGIN + stage_table() + END + after


def _help(command: click.Command, name: str) -> str:
    with click.Context(command, info_name=name, terminal_width=100, max_content_width=100) as context:
        return command.get_help(context)


if __name__ == "__main__":
    (ROOT / "docs/cli.md").write_text(cli_page(), encoding="utf-8")
    (ROOT / "docs/pipeline.md").write_text(pipeline_page(), encoding="utf-8")
