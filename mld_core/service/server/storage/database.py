"""The database: SQLite in WAL mode or PostgreSQL, brought to the newest schema by Alembic at start.

SQLite has one writer at a time. Every write goes through `Database.write`, which begins with the write
lock in hand (`BEGIN IMMEDIATE`), so that no transaction fails half-way because another wrote in between.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from alembic import command
from alembic.config import Config
from sqlalchemy import ColumnElement, Engine, Float, create_engine, event, literal_column, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

T = TypeVar("T")

_MIGRATIONS = Path(__file__).parents[1] / "migrations"
_BUSY_MS = 30_000
# One key of PostgreSQL's advisory locks, so that servers that start together migrate one after another.
_MIGRATION_LOCK = 0x6D6C64


@dataclass
class _Waiting:
    """Work that is done in a transaction with that of others."""

    work: Callable[[Session], Any]
    result: Any = None
    error: BaseException | None = None
    done: bool = False


class Database:
    """Connections to one database. Thread-safe; make one per process (never carry it through a fork)."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._write_lock = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        options: dict[str, Any] = {"pool_size": 16, "max_overflow": 32, "pool_timeout": 30}
        if self.is_sqlite:
            if self.url.database:
                Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
            options["connect_args"] = {"timeout": _BUSY_MS / 1000, "check_same_thread": False}
        else:
            options |= {"pool_pre_ping": True, "pool_recycle": 1800, "connect_args": {"connect_timeout": 5}}
        self.engine: Engine = create_engine(self.url, **options)
        if self.is_sqlite:
            event.listen(self.engine, "connect", _sqlite_connect)
            event.listen(self.engine, "begin", _sqlite_begin)

    def __repr__(self) -> str:
        return f"Database({self.url.render_as_string(hide_password=True)!r})"

    def migrate(self) -> None:
        """Bring the schema up to date.

        Raises:
            sqlalchemy.exc.OperationalError: the database can not be reached.
            alembic.util.CommandError: a newer release wrote it.
        """
        with self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
                connection.commit()
            try:
                command.upgrade(self.alembic_config(connection), "head")
            finally:
                if not self.is_sqlite:
                    connection.rollback()
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _MIGRATION_LOCK})
                    connection.commit()

    def alembic_config(self, connection: Any) -> Config:
        """The configuration of Alembic's commands on this database."""
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS))
        config.attributes["connection"] = connection
        return config

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session to look things up in."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is committed at the end, or rolled back on an error."""
        if not self.is_sqlite:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
            return
        # Waiting here is fair and cheap; SQLite itself polls.
        with self._write_lock, Session(self.engine, expire_on_commit=False) as session:
            session.connection(execution_options={"mld_write": True})
            try:
                yield session
                session.commit()
            except BaseException:
                session.rollback()
                raise

    def together(self, work: Callable[[Session], T]) -> T:
        """Do work in one transaction, and one fsync, with that of others who wait at the same time.

        Each has a savepoint of its own: what one raises is raised to that one only.
        """
        mine = _Waiting(work)
        self._waiting.append(mine)
        with self._turn:
            if not mine.done:
                self._do_all()
        if mine.error is not None:
            raise mine.error
        return cast("T", mine.result)

    def _do_all(self) -> None:
        taken: list[_Waiting] = []
        try:
            with self.write() as session:
                while self._waiting:
                    one = self._waiting.popleft()
                    taken.append(one)
                    if len(taken) == 1 and not self._waiting:  # what it loses is its own: no savepoint
                        one.result = one.work(session)
                        continue
                    try:
                        with session.begin_nested():
                            one.result = one.work(session)
                    except Exception as error:  # noqa: BLE001  told to the one who waits for it
                        one.error = error
        except BaseException as error:  # nothing of it was committed
            while not taken:
                taken.append(self._waiting.popleft())
            for one in taken:
                one.error = one.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for one in taken:
                one.done = True

    @property
    def now(self) -> ColumnElement[float]:
        """The database's own clock as Unix time: servers and workers need not agree on theirs."""
        if self.is_sqlite:
            return literal_column("((julianday('now') - 2440587.5) * 86400.0)", Float)
        return literal_column("extract(epoch from clock_timestamp())", Float)

    def reachable(self) -> bool:
        """Whether the database answers."""
        try:
            with self.engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        except DBAPIError:
            return False
        return True

    def writable(self) -> bool:
        """Whether it takes what is written."""
        try:
            with self.write() as session:
                session.execute(text("DELETE FROM audit WHERE pk < 0"))
        except DBAPIError:
            return False
        return True

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _sqlite_connect(connection: Any, record: Any) -> None:
    del record
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={_BUSY_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _sqlite_begin(connection: Any) -> None:
    write = connection.get_execution_options().get("mld_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
