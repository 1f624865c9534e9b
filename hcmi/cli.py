"""The one command, `hcmi`. Each verb reads params.yaml, calls one stage module, and prints what it made.

Exit codes: 0 done, 1 failed (one line on stderr), 2 wrong use, 130 stopped by Ctrl-C. Stage modules are
imported inside the verbs, so that `hcmi --help` answers at once.
"""

import sys
import warnings
from pathlib import Path

import click

from hcmi import __version__, cli_served
from hcmi.errors import HcmiError, MachineError, file_of, machine_error, shown, system_error
from hcmi.options import json_option, model_option, params_option, show
from hcmi.wording import plural

STOPPED = 130       # the shell's exit code for Ctrl-C


class _Group(click.Group):
    """Lists the verbs in the order of the pipeline, and prints errors of input and machine as one line."""

    def list_commands(self, ctx):
        return list(self.commands)

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except HcmiError as error:
            line, code = str(error), 1
        except KeyboardInterrupt:
            click.echo(err=True)        # end the line that holds the terminal's ^C or half a progress bar
            line, code = "stopped.", STOPPED
        except BrokenPipeError:     # from `hcmi search QUERY | head`: click exits silently
            raise
        except Exception as error:      # only to find system errors; a bug keeps its traceback
            found = _machine_fault(error, ctx.invoked_subcommand)
            if found is None:
                raise
            line, code = str(found), 1
        click.echo(f"hcmi: {shown(line)}", err=True)
        ctx.exit(code)


def _machine_fault(error: Exception, verb: str | None) -> MachineError | None:
    """System errors that no stage has handled: a full disk, a file that cannot be read, no memory."""
    # torch has errors of its own for memory: OutOfMemoryError on a GPU, "can't allocate memory" on a CPU
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
        return MachineError(f"{verb}: need more memory than there is, got: "
                            f"{' '.join(str(error).split())[:200] or 'MemoryError'}. "
                            f"Free memory, or lower batch sizes and num_workers in params.yaml.")
    found = system_error(error)
    if found is None:
        return None
    name = file_of(found)
    if name is None:        # errors of open files name no file
        return machine_error(verb, "to read its input and write its output", found)
    return machine_error(name, "to open it", found)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Turn videos and captions into a search engine, one stage at a time."""
    warnings.formatwarning = _format_warning
    here, there = Path.cwd() / "hcmi", Path(__file__).resolve().parent
    if (here / "cli.py").is_file() and here.resolve() != there:
        click.echo(f"note: this is the hcmi of {there.parent}, not the one of the folder you are in. "
                   "`python -m hcmi` runs that one.", err=True)


def _format_warning(message, category, filename, lineno, line=None) -> str:
    """One line for our own warnings, which are notes to the user; the usual form for those of libraries."""
    if Path(filename).is_relative_to(Path(__file__).parent):
        return f"note: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


@main.command()
@click.option("--manifest", default="data/manifest", show_default=True, help="Folder for the manifest.")
@click.option("--generated", default="data/generated", show_default=True, help="Folder for generated videos.")
@click.option("--incoming", default="data/incoming", show_default=True, help="Folder for generated new batches.")
@click.option("--accepted", default="data/accepted.json", show_default=True, help="List of the batches in --incoming "
              "that are training data too.")
@params_option
@json_option
def dataset(manifest: str, generated: str, incoming: str, accepted: str, params: str, as_json: bool) -> None:
    """List every clip of the data set with its captions, split and file; make the videos of `scenes`.

    Example: hcmi dataset --json
    """
    from hcmi.config import load_params
    from hcmi.dataset import build_dataset

    show(build_dataset(config=load_params(params).dataset, manifest_dir=manifest, generated_dir=generated,
                       incoming_dir=incoming, accepted=accepted), as_json)
    _note_cut_captions(f"{manifest}/manifest.parquet", params)


def _note_cut_captions(manifest: str, params_file: str) -> None:
    """Say what share of the captions the model will not read to the end. No output of the stage depends on it."""
    from hcmi.config import load_params
    from hcmi.dataset import sample_captions

    config, captions = load_params(params_file).model, sample_captions(manifest)
    if max(map(len, captions), default=0) > config.num_words:       # a token has one character or more
        from hcmi.model import cut_note  # loads torch

        if note := cut_note(captions, config):
            click.echo(f"note: {note}", err=True)


@main.command()
@click.option("--manifest", default="data/manifest/manifest.parquet", show_default=True, help="The manifest.")
@click.option("--out", default="data/shards", show_default=True, help="Folder to write.")
@params_option
@json_option
def shards(manifest: str, out: str, params: str, as_json: bool) -> None:
    """Decode every clip of the manifest into WebDataset shards; only what is new or changed is decoded.

    Example: hcmi shards --json
    """
    from hcmi.config import load_params
    from hcmi.shards import write_shards

    config = load_params(params)
    square = {}
    if (config.shards.fit, config.model.backbone) != ("auto", "scratch"):
        from hcmi.model import shards_square  # takes seconds to import

        square["square"] = shards_square(config.shards.fit, config.model.backbone)
    show(write_shards(manifest_path=manifest, out_dir=out, config=config.shards, **square), as_json)


@main.command()
@click.option("--shards", default="data/shards", show_default=True, help="Folder that `hcmi shards` wrote.")
@click.option("--out", default="models/hcmi", show_default=True, help="Model folder to write.")
@click.option("--metrics", default="metrics/train", show_default=True, help="Folder for the training curves.")
@click.option("--checkpoints", default="checkpoints", show_default=True, help="What an interrupted run continues from.")
@click.option("--plan", is_flag=True, help="Train nothing: say what the run would take, from a few timed steps.")
@params_option
@json_option
def train(shards: str, out: str, metrics: str, checkpoints: str, plan: bool, params: str, as_json: bool) -> None:
    """Train the retriever and keep the epoch that is best on validation. An interrupted run continues.

    With --plan the exit code is 1 when the run would not start.

    Example: hcmi train --shards data/shards --out models/hcmi
    """
    from hcmi.config import load_params
    from hcmi.train import plan_text, plan_training
    from hcmi.train import train as run

    config = load_params(params)
    if plan:
        found = plan_training(shards_dir=shards, model_config=config.model, config=config.train)
        show(found, as_json, plan_text(found))
        if found["problems"]:
            sys.exit(1)
        return
    summary = run(shards_dir=shards, model_dir=out, metrics_dir=metrics, checkpoint_dir=checkpoints,
                  model_config=config.model, config=config.train)
    if summary:         # of several processes that torchrun has started, one reports
        show(summary, as_json)


@main.command()
@model_option
@click.option("--shards", default="data/shards", show_default=True, help="Folder that `hcmi shards` wrote.")
@click.option("--out", default="metrics/evaluate.json", show_default=True, help="File of figures to write; "
              "headline.json is written beside it.")
@click.option("--plots", default="plots", show_default=True, help="Folder of tables and pictures to write.")
@click.option("--encoded", help="File in which to keep the tokens of the split, for `hcmi export --encoded`.")
@click.option("--compare", nargs=2, metavar="A B", help="Measure nothing: compare two runs, query by query. Each is an "
              "evaluate.json or a folder with metrics/ and plots/.")
@params_option
@json_option
def evaluate(model: str, shards: str, out: str, plots: str, encoded: str | None, compare: tuple[str, str] | None,
             params: str, as_json: bool) -> None:
    """Measure retrieval on held-out clips in both directions, or compare two measurements.

    Examples:

      hcmi evaluate --out metrics/evaluate.json --plots plots

      hcmi evaluate --compare runs/before runs/after
    """
    if compare:
        from hcmi.evaluate import compare_runs, compare_text

        differences = compare_runs(*compare)
        show(differences, as_json, compare_text(differences, *compare))
        return
    from hcmi.config import load_params
    from hcmi.evaluate import evaluate as run
    from hcmi.evaluate import report_text

    report = run(model_dir=model, shards_dir=shards, out_json=out, plots_dir=plots, params=load_params(params),
                 encoded_file=encoded)
    show(report, as_json, report_text(report))


@main.command()
@model_option
@click.option("--shards", default="data/shards", show_default=True, help="Folder of shards, or its URL.")
@click.option("--out", default="export", show_default=True, help="Folder to write.")
@click.option("--encoded", help="File that `hcmi evaluate --encoded` wrote: its clips are not encoded again.")
@click.option("--push", metavar="URI", help="Encode nothing: copy the finished export into Milvus.")
@params_option
@json_option
def export(model: str, shards: str, out: str, encoded: str | None, push: str | None, params: str, as_json: bool
           ) -> None:
    """Encode every clip and build the search index; or copy it into Milvus.

    Examples:

      hcmi export --model models/hcmi --out export

      hcmi export --push http://localhost:19530
    """
    if push:
        from hcmi.index import push_export

        show(push_export(out, push), as_json)
        return
    from hcmi.config import load_params
    from hcmi.export import export as run

    given = load_params(params)
    show(run(model_dir=model, shards=shards, out_dir=out, config=given.export, processes=given.train.num_processes,
             encoded_file=encoded), as_json)


@main.command()
@click.option("--incoming", default="data/incoming", show_default=True, help="Folder of new batches.")
@click.option("--batch", "batches", multiple=True, metavar="NAME", help="Judge only this batch; may be repeated.")
@model_option
@click.option("--export", default="export", show_default=True, help="Folder that `hcmi export` wrote.")
@click.option("--shards", default="data/shards", show_default=True, help="Folder that `hcmi shards` wrote.")
@click.option("--out", default="reports/drift", show_default=True, help="Folder to write.")
@click.option("--learn-from", metavar="FOLDER",
              help="Folder of reports: the limits also allow what the accepted batches in it showed.")
@click.option("--history", metavar="FOLDER", help="Judge nothing; write FOLDER/history.html about all reports in it.")
@params_option
@json_option
def drift(incoming: str, batches: tuple[str, ...], model: str, export: str, shards: str, out: str,
          learn_from: str | None, history: str | None, params: str, as_json: bool) -> None:
    """Compare new batches with the model's test clips, and write a report with a verdict for each batch.

    Example: hcmi drift --batch 2026-11-23 --out reports/watch/2026-11-23 --json
    """
    from hcmi.config import load_params
    from hcmi.drift import drift as run
    from hcmi.drift import write_history

    if history is not None:
        found = write_history(history, load_params(params).drift.false_alarm_rate)
        show(found, as_json, f"report: {shown(history)}/history.html\nbatches: {len(found['batches'])}")
        return
    result = run(incoming_dir=incoming, model_dir=model, export_dir=export, shards_dir=shards, out_dir=out,
                 params=load_params(params), batches=batches, learn_from=learn_from)
    verdicts = [f"{batch}: {verdict}" for batch, verdict in result["verdicts"].items()]
    show(result, as_json, "\n".join([f"report: {shown(out)}/index.html", *verdicts]))


@main.command()
@click.argument("path")
@json_option
def model(path: str, as_json: bool) -> None:
    """Say what PATH holds: the folder of a trained model, or the folder or name of a pretrained checkpoint.

    Example: hcmi model models/hcmi
    """
    from hcmi.model import describe_model, description_text

    description = describe_model(path)
    show(description, as_json, description_text(description))


@main.command()
@click.argument("folder", metavar="DIR")
def init(folder: str) -> None:
    """Make the project folder DIR: parameters, stages, schedules and a place for data. Existing files are kept.

    Example: hcmi init my_project
    """
    from hcmi.project import init_project, next_steps

    made, kept = init_project(folder)
    click.echo(f"made {plural(len(made), 'file')} in {folder}", err=True)
    if kept:
        click.echo(f"note: kept what was there: {', '.join(map(shown, kept))}", err=True)
    click.echo("\n".join(map(shown, next_steps(folder))))


@main.command()
@click.argument("data", required=False)
@click.option("--sample", default=64, show_default=True, type=click.IntRange(min=1), help="Files to decode, at most.")
@click.option("--seconds", default=20.0, show_default=True,
              help="Start no new file after this time. Those that fail are opened once more at the end.")
@params_option
@json_option
def doctor(data: str | None, sample: int, seconds: float, params: str, as_json: bool) -> None:
    """Check the folder DATA before a long run: what it holds, what the run will cost, which problems there are.

    Without DATA, the data set of params.yaml is checked, or, where there is no params.yaml, the folder you are in. The
    last lines are the commands to type next. The exit code is 1 when there are problems.

    Example: hcmi doctor my_videos
    """
    from hcmi.config import load_params
    from hcmi.doctor import doctor as run
    from hcmi.doctor import report_text

    known = load_params(params) if params != "params.yaml" or Path(params).exists() else None
    report = run(data or (known.dataset.path if known else "."), known, sample, seconds)
    show(report, as_json, report_text(report))
    if report["problems"]:
        sys.exit(1)


@main.command()
@click.argument("files", nargs=-1, required=True)
@params_option
def overrides(files: tuple[str, ...], params: str) -> None:
    """Print parameter FILES, such as those in presets/, as options: dvc exp run $(hcmi overrides FILES).

    Example: hcmi overrides presets/msrvtt.yaml presets/vit-b-32.yaml
    """
    from hcmi.config import load_overrides
    from hcmi.errors import ConfigError

    changes = load_overrides(files, params)
    for key, value in changes.items():
        if len(str(value).split()) != 1:        # the shell would split it
            raise ConfigError(f"{key}: need a value without spaces, got {value!r}. Set it with dvc exp run -S.")
    click.echo(" ".join(f"-S {key}={value}" for key, value in changes.items()))


for command in cli_served.COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main()
