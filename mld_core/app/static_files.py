"""The built front end: files of `static/`, nothing else; without one a page that says how it is made."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from mld_core.app.problems import ProblemError

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>ml_debugger</title>
<h1>The pages are not built</h1><p>This is an installation from source without its front end. In its folder
run <code>make app</code> (it needs npm), then start <code>mld ui</code> again. In the terminal:
<code>mld show</code>.</p></html>
"""


def mount(app: FastAPI, base: str, folder: Path = STATIC) -> None:
    """Serve the page at `base`/ and its files beside it."""

    @app.get(base, include_in_schema=False)
    def bare(request: Request) -> Response:
        query = request.url.query
        return RedirectResponse(f"./{base.rpartition('/')[2]}/{'?' + query if query else ''}", 308)

    @app.get(f"{base}/", include_in_schema=False)
    def index() -> Response:
        page = folder / INDEX
        if not page.is_file():
            return Response(_MISSING, 200, media_type="text/html; charset=utf-8")
        return FileResponse(
            page, media_type="text/html; charset=utf-8", headers={"cache-control": "no-cache"}
        )

    @app.get(f"{base}/{{path:path}}", include_in_schema=False)
    def file(path: str) -> Response:
        found = inside(folder, path)
        if found is None:
            raise ProblemError(404, "there is no such page or file")
        kind = _TYPES.get(found.suffix) or mimetypes.guess_type(found.name)[0] or "application/octet-stream"
        # Vite names files by their content: one under assets/ never changes.
        lasting = "private, max-age=31536000, immutable" if path.startswith("assets/") else "no-cache"
        return FileResponse(found, media_type=kind, headers={"cache-control": lasting})


def inside(folder: Path, path: str) -> Path | None:
    """The file of a path under a folder; None where there is none, or it leads out of the folder."""
    if "\0" in path or "\\" in path:
        return None
    found = (folder / path).resolve()
    return found if found.is_relative_to(folder.resolve()) and found.is_file() else None
