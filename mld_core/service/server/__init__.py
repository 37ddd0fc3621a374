"""The service: a team's store behind HTTP. Needs the extra `server`; only `mld serve` and its kin load it."""

from importlib.util import find_spec

_missing = [
    name
    for name in ("fastapi", "uvicorn", "httptools", "sqlalchemy", "alembic", "prometheus_client")
    if find_spec(name) is None
]
if _missing:
    raise ImportError(
        f'the server needs {", ".join(_missing)}: pip install "ml-debugger[server]"', name=_missing[0]
    )
