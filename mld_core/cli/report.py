"""`mld report`: a result, or two of them, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mld_core.cli.common import JsonOption, ModelOption, StoreOption, clear_errors
from mld_core.cli.output import emit_json, note
from mld_core.cli.source import source


def report(
    a: Annotated[
        str | None,
        typer.Argument(
            metavar="RESULT|MODEL",
            help="A result, MODEL/VERSION, a version or a model. Default: the newest run's newest result.",
            show_default=False,
        ),
    ] = None,
    b: Annotated[
        str | None,
        typer.Argument(
            metavar="AFTER|VERSION",
            help="Of MODEL its version; else compare: RESULT before, this one after.",
            show_default=False,
        ),
    ] = None,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; it is replaced.")] = Path(
        "report.html"
    ),
    model: ModelOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a result as one HTML page, or two results of one task side by side.

    The file is complete: it opens offline in any browser and can be sent as it is. It is the app of `mld ui`,
    with every sample or box of the last epoch of each split; of two results with all that changed. Samples
    have thumbnails where the training recorded them (image_fn). Frames of 3D detections are drawn from above,
    with points where you write the page from Python: result.report(path, image_fn=...). Where
    MLD_API_ENDPOINT is set, results of that service (--store DIR: of a store here).

    \b
    Examples:
      mld report                              newest result of the newest run, into report.html
      mld report resnet18 v3 -o v3.html       of this run, as in `mld evaluate resnet18 v3`
      mld report v2 v3 -o change.html         what changed from v2 to v3
    """  # noqa: D301  click reads the mark
    with clear_errors():
        from mld_core.report import write_comparison, write_report  # loaded when it runs

        results = source(store)
        if a is None:
            written = write_report(results.result(results.run(model, None)), output)
        elif b is None:
            written = write_report(results.find(a, model), output)
        elif model is None and results.holds(a, b):
            written = write_report(results.result(results.run(a, b)), output)
        else:
            written = write_comparison(results.find(a, model), results.find(b, model), output)
    if as_json:
        emit_json({"path": written.path, "bytes": written.bytes, "left_out": written.left_out})
        return
    typer.echo(str(written.path))
    note(f"{written.bytes / 1e6:.1f} MB")
    for text in written.left_out:
        note(f"note: {text}")
