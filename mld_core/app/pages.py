"""The application: `ui/` the built page, `ui/api` what it asks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from fastapi import FastAPI
from starlette.types import ASGIApp

from mld_core.app import (
    cloud_routes,
    compare_routes,
    job_routes,
    problems,
    read_routes,
    review_routes,
    run_routes,
    static_files,
)
from mld_core.app.asking import Shown
from mld_core.app.clouds.points import Clouds
from mld_core.app.jobs.local import LocalJobs
from mld_core.app.kept_rows import KeptRows
from mld_core.app.library import Held, Library
from mld_core.app.pictures import Pictures
from mld_core.app.session import Gate, SignIn
from mld_core.app.shelf import LocalShelf, Who
from mld_core.app.training import routes as training_routes
from mld_core.app.training.routes import Following
from mld_core.records.format.layout import Store

BASE = "/ui"
LOOK_SECONDS, TEAM_LOOK_SECONDS = 0.3, 1.0
"""Between two looks at a run that a page follows; a team's server asks its database each time."""


def make_app(
    shown: Callable[[Who], Shown],
    sign_in: SignIn,
    *,
    hosts: Collection[str] | None = None,
    frames: Sequence[str] = (),
    local: bool = False,
    ending: Callable[[], bool] = lambda: False,
) -> ASGIApp:
    """The pages.

    Args:
        shown: What who asks is shown.
        sign_in: Who is asking.
        hosts: Names by which the server may be asked, beside those of this machine; None = who stands in
            front of it has looked.
        frames: Origins that may show the pages in a frame.
        local: The reader owns the machine: places of it may be shown.
        ending: Whether the server is about to end, so that no stream keeps it.
    """
    app = FastAPI(title="ml_debugger", docs_url=None, redoc_url=None, openapi_url=f"{BASE}/api/openapi.json")
    problems.install(app)
    app.state.shown, app.state.local, app.state.leaves = shown, local, sign_in.public
    app.state.following = Following(ending, LOOK_SECONDS if local else TEAM_LOOK_SECONDS)
    rooms = (run_routes, read_routes, cloud_routes, compare_routes, review_routes, job_routes)
    for one in (*rooms, training_routes):
        app.include_router(one.routes, prefix=f"{BASE}/api")
    static_files.mount(app, BASE)
    return Gate(app, sign_in, hosts, frames, BASE)


def local_app(
    store: Store,
    sign_in: SignIn,
    *,
    pictures: Pictures | None = None,
    clouds: Clouds | None = None,
    hosts: Sequence[str] = (),
    frames: Sequence[str] = (),
    ending: Callable[[], bool] = lambda: False,
) -> ASGIApp:
    """The pages over a store of this machine.

    Args:
        store: What is shown.
        sign_in: Who is asking.
        pictures: Where pictures lie that were not recorded.
        clouds: Where points of frames lie.
        hosts: Names by which the server may be asked, beside those of this machine.
        frames: Origins that may show the pages in a frame.
        ending: Whether the server is about to end.
    """
    rows = KeptRows(store.root)
    library = Library(LocalShelf(store, rows), Held(rows=rows))
    all_of_it = Shown(library, pictures or Pictures(store), LocalJobs(store), clouds or Clouds(store))
    return make_app(lambda _: all_of_it, sign_in, hosts=hosts, frames=frames, local=True, ending=ending)
