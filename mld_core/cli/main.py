"""The `mld` command: wires the subcommands."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Final

import typer

from mld_core import __version__
from mld_core.cli.compare import compare
from mld_core.cli.doctor import doctor
from mld_core.cli.evaluate import evaluate, feature_map, jobs, watch
from mld_core.cli.files import collect, export, merge_stores
from mld_core.cli.ls import ls
from mld_core.cli.report import report
from mld_core.cli.review import review
from mld_core.cli.rm import rm
from mld_core.cli.serve import keys, serve, worker
from mld_core.cli.show import show
from mld_core.cli.sync import sync
from mld_core.cli.ui import ui

app = typer.Typer(
    name="mld",
    no_args_is_help=True,
    add_completion=False,
    # Plain help: it reads the same on a terminal, in a pipe and in a log.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """See what your model does, sample by sample: evaluate and look at recorded trainings.

    Tables are printed for people on a terminal, tab-separated in a pipe, and as JSON with --json.

    \b
    Examples:
      mld run python train.py   run a training and record it
      mld ls               what was recorded
      mld watch            its figures, while it goes on
      mld evaluate         evaluate the newest run
      mld ui               open it in a browser: what fails, why, what to do
      mld show --issues    the samples that fail, worst first
      mld compare v1 v2    what changed between two versions
      mld report           the newest result as an HTML page
      mld review           say which labels are wrong, take the corrections along
      mld sync             send what was recorded to your team's service
      mld doctor           is everything in order?

    \b
    Exit codes:
      0  all is well
      1  something failed, or doctor found a problem
      2  the command was not understood
      3  there is nothing of that name
    """  # noqa: D301  click reads the mark


_ANYTHING: Final[dict[str, Any]] = {
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
    "allow_extra_args": True,
}


def run(context: typer.Context) -> None:
    """Run a training as it is, and record it: no line of it changes.

    Lightning, Hugging Face's Trainer, MMEngine and Ultralytics are recorded by the callback each of them
    has a place for, on every rank that the command starts; a callback that the program adds itself stays
    the only one. Accelerate and loops written by hand need one line in the program, which is told.

    The command runs as it would alone: its arguments, its input, its exit code, its signals.

    \b
    Examples:
      mld run python train.py --epochs 3
      mld run torchrun --nproc_per_node 2 train.py
      mld run yolo detect train data=coco8.yaml model=yolo11n.pt epochs=3
      MLD_HOME=/data/records mld run python -m my.training
    """  # noqa: D301  click reads the mark
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "ml_debugger.run", *context.args])  # noqa: S606 - no shell


app.command("run", short_help="Run a training as it is, and record it.", context_settings=_ANYTHING)(run)
app.command("ls", short_help="What was recorded: runs, passes, results.")(ls)
app.command("evaluate", short_help="Evaluate a run and print the summary.")(evaluate)
app.command("watch", short_help="Watch a training as it is evaluated.")(watch)
app.command("ui", short_help="Open what was recorded in a browser.")(ui)
app.command("show", short_help="Print a result, its issues, or a view of it.")(show)
app.command("compare", short_help="Two results, or more: what got better, what worse.")(compare)
app.command("map", short_help="Make a map of a result's features by UMAP.")(feature_map)
app.command("report", short_help="A result as one HTML page, or two compared.")(report)
app.add_typer(review, name="review", short_help="Verdicts on samples: give, export, apply.")
app.command("export", short_help="Write the records of a run into a ZIP.")(export)
app.command("gc", short_help="Remove leftovers, drop old features.")(collect)
app.command("rm", short_help="Remove runs, epochs, results, or a sample's rows.")(rm)
app.command("merge", short_help="Join stores of several machines.")(merge_stores)
app.command("sync", short_help="Send recorded passes to a team's service.")(sync)
app.command("serve", short_help="Run a server for a team.")(serve)
app.command("worker", short_help="Run evaluations for a server.")(worker)
app.add_typer(jobs, name="jobs", short_help="Evaluations at a service: list, cancel.")
app.add_typer(keys, name="keys", short_help="Keys of a server: create, list, revoke.")
app.command("doctor", short_help="Versions, the store, and its health.")(doctor)


if __name__ == "__main__":
    app()
