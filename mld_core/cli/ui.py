"""`mld ui`: the pages in a browser, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from mld_core.cli.common import StoreOption, clear_errors, store_in_folder
from mld_core.cli.output import note
from mld_core.records.store.verdict import default_author


def ui(
    *,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, help="Port. Default: the first free one from 8766 on.", show_default=False
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser, where there is one.")
    ] = True,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Pictures: '/data/{input_id}.jpg', a CSV of ids and paths, or package.module:dataset.",
            show_default=False,
        ),
    ] = None,
    points: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Points of 3D frames: '/data/{input_id}.bin' (.npy, .pcd), or a CSV of ids and paths.",
            show_default=False,
        ),
    ] = None,
    points_columns: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=3,
            max=64,
            help="Float32 columns of .bin files, also of --points before: KITTI 4, nuScenes 5. "
            "Default: what the files tell.",
            show_default=False,
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Name by which a proxy asks for it; may be repeated.", show_default=False
        ),
    ] = None,
    allow_frame: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Origin that may show it in a frame, e.g. http://localhost:8888; may be repeated.",
            show_default=False,
        ),
    ] = None,
    author: Annotated[
        str,
        typer.Option(
            help="Under which name is reviewed. Default: MLD_AUTHOR, else your account.", show_default=False
        ),
    ] = "",
    store: StoreOption = None,
) -> None:
    """Open what was recorded in a browser: what fails, why, what to do, and the review of labels.

    It listens on this machine alone. The address holds a token that is worth one session; stop with Ctrl-C.
    Needs the extra: pip install "ml-debugger[ui]".

    \b
    Examples:
      mld ui
      mld ui --images '/data/val/{input_id}.jpg'
      mld ui --points '/data/velodyne/{input_id}.bin'
      mld ui --no-browser --port 8800      on a remote machine, with ssh -L 8800:127.0.0.1:8800
    """  # noqa: D301  click reads the mark
    with clear_errors():
        opened = store_in_folder(store)
        if not opened.root.is_dir():
            if store is not None:
                raise FileNotFoundError(f"there is no store at {opened.root}: give the folder of one")
            note(f"mld: nothing is recorded in {opened.root} yet; the page says how to begin")
        try:
            from mld_core.app.local import Options, serve
        except ImportError as error:
            raise ImportError(
                f'the pages need FastAPI and uvicorn ({error.name} is missing): pip install "ml-debugger[ui]"'
            ) from error
        options = Options(
            *(port, allow_host or (), allow_frame or (), images, points, points_columns, browser),
            author or default_author(),
        )
        serve(opened, options, typer.echo)
