"""`mld ui`: the pages on this machine, for the one person who holds the address."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from mld_core.app.clouds.points import Clouds
from mld_core.app.pages import BASE, local_app
from mld_core.app.pictures import Pictures
from mld_core.app.session import LocalSignIn
from mld_core.records.format.layout import Store

PORT = 8766
TRIED = 20
"""Ports looked at above the first, where none was named and that one is taken."""


@dataclass(frozen=True)
class Options:
    """How the pages are served.

    Attributes:
        port: Port; None = the first free one from 8766 on, 0 = any.
        hosts: Names by which they may be asked, beside those of this machine.
        frames: Origins that may show them in a frame.
        images: Where pictures lie that were not recorded.
        points: Where points of 3D frames lie.
        columns: Columns of raw files of points, these or those set before; None = what they tell themselves.
        browser: Open one, where there is one.
        author: The name under which is reviewed.
    """

    port: int | None = None
    hosts: Sequence[str] = ()
    frames: Sequence[str] = ()
    images: str | None = None
    points: str | None = None
    columns: int | None = None
    browser: bool = True
    author: str = ""


def serve(store: Store, options: Options, say: Callable[[str], None]) -> None:
    """Serve the pages until interrupted.

    Args:
        store: What is shown.
        options: How.
        say: Takes the address, once the pages answer.

    Raises:
        OSError: The port is taken.
        ValueError: `images` or `points` means nothing.
    """
    sign_in = LocalSignIn(options.author)
    pictures = Pictures(store)
    if options.images is not None:
        pictures.set(options.images)
    clouds = clouds_of(store, options)
    listening = listen(options.port)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}{BASE}/?token={sign_in.token}"
    names = {"hosts": options.hosts, "frames": options.frames}
    app = local_app(
        store, sign_in, pictures=pictures, clouds=clouds, **names, ending=lambda: server.should_exit
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            say(address)
            if options.browser and has_browser():
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    server = Server(config_of(app))
    server.run(sockets=[listening])


def clouds_of(store: Store, options: Options) -> Clouds:
    """Where points lie; columns alone are those of the files that the store remembers.

    Raises:
        ValueError: It means nothing, or there are columns and no points.
    """
    clouds = Clouds(store)
    if options.points is not None:
        clouds.set(options.points, options.columns)
    elif options.columns is not None:
        if clouds.source is None:
            why = f" ({clouds.broken})" if clouds.broken else ""
            raise ValueError(
                f"--points-columns {options.columns}: no points are set{why}; say where with --points"
            )
        clouds.set(clouds.source.text, options.columns)
    return clouds


def config_of(app: ASGIApp) -> uvicorn.Config:
    """How the pages are served."""
    return uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, date_header=False, lifespan="off"
    )


def listen(port: int | None) -> socket.socket:
    """A socket on this machine alone.

    Raises:
        OSError: The port that was named is taken.
    """
    for number in [port] if port is not None else [*range(PORT, PORT + TRIED), 0]:
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if os.name == "posix":
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("127.0.0.1", number))
            made.listen(128)
        except OSError as error:
            made.close()
            if error.errno not in {errno.EADDRINUSE, errno.EACCES}:
                raise
            if port is not None:
                said = f"port {port} is taken: choose another with --port, or leave it out to take a free one"
                raise OSError(error.errno, said) from error
            continue
        return made
    raise OSError(errno.EADDRINUSE, "no port is free")


def has_browser() -> bool:
    """Whether a browser can be opened that a person sees."""
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True
