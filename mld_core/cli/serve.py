"""`mld serve`, `mld worker` and `mld keys`: a server of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mld_core.cli.common import JsonOption, clear_errors
from mld_core.cli.output import emit, emit_json, note
from mld_core.cli.source import client_of, the_service
from mld_core.evaluation.errors import NotFoundError

if TYPE_CHECKING:
    from mld_core.service.client.people import People
    from mld_core.service.server.settings import Settings

DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the server. Default: MLD_SERVER_DATA, else ~/.mld-server.",
        show_default=False,
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="postgresql://... Default: SQLite in the data folder.", show_default=False
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Folder, or s3://bucket/prefix. Default: in the data folder.",
        show_default=False,
    ),
]
_KEY_COLUMNS = (
    *("key_id", "name", "person", "organization", "scopes"),
    *("created_at", "expires_at", "revoked_at", "last_used_at"),
)

_PERSON_COLUMNS = ("name", "role", "models", "organization", "created_at", "disabled_at")
RoleOption = Annotated[
    str | None, typer.Option(metavar="ROLE", help="viewer, writer or admin.", show_default=False)
]
ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Name of a model they may see, * for any text; may be repeated. Default: all.",
        show_default=False,
    ),
]
OrganizationOption = Annotated[
    str | None, typer.Option(help="Organization. Default: the first.", show_default=False)
]
RemoteOption = Annotated[
    bool, typer.Option("--remote", help="At the service at MLD_API_ENDPOINT; asks for an admin's key.")
]


@contextmanager
def _clear_errors() -> Iterator[None]:
    """What the server may raise, as one line; where its extra is missing, the command that installs it."""
    with clear_errors():
        try:
            yield
        except LookupError as error:
            raise NotFoundError(*error.args) from error
        except Exception as error:
            # SQLAlchemy can not be named here: it belongs to the extra.
            if not type(error).__module__.startswith("sqlalchemy."):
                raise
            cause = [*str(getattr(error, "orig", error)).strip().splitlines(), type(error).__name__]
            raise OSError(f"the database can not be used ({cause[0]})") from error


def _people() -> People:
    from mld_core.service.client.people import People

    return People(client_of(the_service()))


def _settings(**changes: Any) -> Settings:
    from mld_core.service.server.settings import load_settings

    return load_settings(changes)


def serve(
    *,
    data: DataOption = None,
    bind: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Listen here. Default: 127.0.0.1.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port. Default: 8765; 0 = any free one.", show_default=False),
    ] = None,
    database: DatabaseOption = None,
    storage: StorageOption = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Name clients reach it by; may be repeated.", show_default=False),
    ] = None,
    trusted_proxies: Annotated[
        str | None,
        typer.Option(
            metavar="NETWORKS",
            help="Proxies whose X-Forwarded-For is believed: 10.0.0.2,10.1.0.0/16.",
            show_default=False,
        ),
    ] = None,
    user_header: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Header in which those proxies name who signed in.", show_default=False
        ),
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="Certificate chain (PEM).", show_default=False)
    ] = None,
    tls_key: Annotated[
        str | None, typer.Option(metavar="FILE", help="Its key (PEM).", show_default=False)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Evaluation workers to start. Default: 1; 0 = `mld worker`.", show_default=False
        ),
    ] = None,
) -> None:
    """Run a server for a team: records are uploaded to it and evaluated by it.

    It needs nothing else: the database is SQLite and the files lie in one folder. The first start makes a key
    with all scopes: it is shown on a terminal, and lies in the file first-key of the data folder. Logs go to
    stderr, one JSON object a line. Every option can be given as a variable instead (MLD_SERVER_PORT, ...);
    docs/service.md lists those that have no option, with quotas, limits, S3 and PostgreSQL. Needs the extra:
    pip install "ml-debugger[server]".

    \b
    Examples:
      mld serve                                        on this machine, http://127.0.0.1:8765
      mld serve --bind 0.0.0.0 --allowed-host mld.lan  for the network, behind a proxy with TLS
      mld serve --data /srv/mld --port 80
      mld serve --database postgresql://mld@db/mld --storage s3://records/mld --workers 0

    \b
    Then, where you train (the key is the one that was printed):
      export MLD_API_ENDPOINT=http://127.0.0.1:8765 MLD_API_KEY=mldbg_...
      python train.py && mld sync
      mld evaluate
    """  # noqa: D301  click reads the mark
    with _clear_errors():
        from mld_core.service.server import run

        settings = _settings(
            data=data,
            bind=bind,
            port=port,
            database=database,
            storage=storage,
            allowed_hosts=tuple(allowed_host) if allowed_host else None,
            trusted_proxies=_listed(trusted_proxies),
            user_header=user_header,
            tls_cert=tls_cert,
            tls_key=tls_key,
            workers=workers,
        )
        run.serve(settings)


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def worker(
    *, data: DataOption = None, database: DatabaseOption = None, storage: StorageOption = None
) -> None:
    """Run evaluations for a server, one at a time, until stopped.

    A server starts one worker itself. Start more where there are cores to spare; they need the same database
    and storage as the server, which for several machines means PostgreSQL and S3. A worker that dies loses
    nothing: its evaluation is given to another.

    \b
    Examples:
      mld worker --data /srv/mld
      mld worker --database postgresql://mld@db/mld --storage s3://records/mld
    """  # noqa: D301  click reads the mark
    with _clear_errors():
        from mld_core.service.server.jobs.worker import run_worker

        run_worker(_settings(data=data, database=database, storage=storage))


keys = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@keys.callback()
def keys_group() -> None:
    """People and keys of a server, on the machine it runs on; with --remote, for admins, at the service.

    \b
    Examples:
      mld keys add alice --role writer                 a person, and a key for them
      mld keys add bob --role viewer --models 'resnet*' --models unet
      mld keys roles bob --role writer
      mld keys people
      mld keys revoke bob                              all keys of a person, and their sign-in
      mld keys list --remote
      mld keys create --name ci --scope write --expires-in-days 90 --organization vision
      mld keys list
      mld keys revoke key_0123456789abcdef01234567
    """  # noqa: D301  click reads the mark


@keys.command("create", short_help="Make a key; it is shown once.")
def keys_create(
    *,
    name: Annotated[str, typer.Option(help="Whose key it is.")],
    scope: Annotated[list[str], typer.Option(help="read, write or admin; may be repeated.")],
    organization: Annotated[
        str | None,
        typer.Option(help="Organization; made if it is not there. Default: the first.", show_default=False),
    ] = None,
    expires_in_days: Annotated[
        float | None, typer.Option(min=0.0, help="Default: never.", show_default=False)
    ] = None,
    data: DataOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key and print it. Only its hash is kept, so it is shown this once.

    read looks at records and results, write uploads and evaluates, admin manages keys. None implies another.

    \b
    Examples:
      mld keys create --name alice --scope read --scope write
    """  # noqa: D301  click reads the mark
    with _clear_errors():
        from mld_core.service.server import run

        settings = _settings(data=data, database=database)
        made = run.keys_create(settings, name, scope, organization, expires_in_days)
    if as_json:
        emit_json(made)
        return
    note(
        f"{made['key_id']} for {made['name']} of {made['organization']} ({made['scopes']}); shown this once:"
    )
    typer.echo(made["key"])


@keys.command("add", short_help="A person, and a key for them; it is shown once.")
def keys_add(
    name: Annotated[str, typer.Argument(help="The person; who signs in through a proxy: the name it gives.")],
    *,
    role: RoleOption = None,
    models: ModelsOption = None,
    expires_in_days: Annotated[
        float | None, typer.Option(min=0.0, help="Of the key. Default: never.", show_default=False)
    ] = None,
    organization: OrganizationOption = None,
    remote: RemoteOption = False,
    data: DataOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add a person, or another key for one who is there, and print the key.

    A viewer reads, a writer uploads and evaluates too, an admin manages people and keys too. Who may see only
    some models finds nothing of the others.

    \b
    Examples:
      mld keys add alice --role writer
      mld keys add bob --role viewer --models 'resnet*'
    """  # noqa: D301  click reads the mark
    with _clear_errors():
        if remote:
            made = _people().add(name, role, models, expires_in_days)
        else:
            from mld_core.service.server import run

            settings = _settings(data=data, database=database)
            made = run.people_add(settings, name, role, models, organization, expires_in_days)
    if as_json:
        emit_json(made)
        return
    note(f"{made['key_id']} for {name}; shown this once:")
    typer.echo(made["key"])


@keys.command("roles", short_help="Set a person's role, and the models they may see.")
def keys_roles(
    name: Annotated[str, typer.Argument(help="The person.")],
    *,
    role: RoleOption = None,
    models: ModelsOption = None,
    organization: OrganizationOption = None,
    remote: RemoteOption = False,
    data: DataOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set a person's role and models; all keys of theirs obey it from the next second on.

    \b
    Examples:
      mld keys roles bob --role writer
      mld keys roles bob --models 'resnet*' --models unet
    """  # noqa: D301  click reads the mark
    with _clear_errors():
        if remote:
            row = _people().change(name, role, models)
        else:
            from mld_core.service.server import run

            settings = _settings(data=data, database=database)
            row = run.people_change(settings, name, organization, role=role, models=models)
    if as_json:
        emit_json(row)
        return
    note(f"{row['name']} is {row['role']} of {', '.join(row['models'])}")


@keys.command("people", short_help="All people, their roles and models.")
def keys_people(
    *,
    remote: RemoteOption = False,
    data: DataOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List people, those who are refused too.

    \b
    Examples:
      mld keys people --remote
    """  # noqa: D301  click reads the mark
    with _clear_errors():
        if remote:
            rows = _people().all()
        else:
            from mld_core.service.server import run

            rows = run.people_list(_settings(data=data, database=database))
    emit(rows, _PERSON_COLUMNS, as_json=as_json)


@keys.command("list", short_help="All keys, without their secrets.")
def keys_list(
    *,
    remote: RemoteOption = False,
    data: DataOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the keys of all organizations, with --remote of yours; revoked ones too.

    \b
    Examples:
      mld keys list --json
    """  # noqa: D301  click reads the mark
    with _clear_errors():
        if remote:
            rows = _people().keys()
        else:
            from mld_core.service.server import run

            rows = run.keys_list(_settings(data=data, database=database))
    emit(rows, _KEY_COLUMNS, as_json=as_json)


@keys.command("revoke", short_help="Refuse a key, or a person, from now on.")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="The id of a key, as `mld keys list` shows it, or a person.")],
    *,
    organization: OrganizationOption = None,
    remote: RemoteOption = False,
    data: DataOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke a key: the server refuses it from the next second on. Of a person: all keys, and their sign-in.

    \b
    Examples:
      mld keys revoke key_0123456789abcdef01234567
      mld keys revoke bob
    """  # noqa: D301  click reads the mark
    with _clear_errors():
        if remote:
            row = _people().revoke(key)
        else:
            from mld_core.service.server import run

            settings = _settings(data=data, database=database)
            if key.startswith("key_"):
                row = run.keys_revoke(settings, key)
            else:
                row = run.people_change(settings, key, organization, disable=True)
    if as_json:
        emit_json(row)
        return
    note(f"{row['key_id']} of {row['name']} is revoked" if "key_id" in row else f"{row['name']} is refused")
