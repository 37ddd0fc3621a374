"""What the server can be told, and where: `MLD_SERVER_*` variables, then the options of `mld serve`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ENV_PREFIX = "MLD_SERVER_"
SECRET_PREFIXES = ("MLD_", "AWS_", "PG")
"""Variables that processes which read uploaded files do not get."""

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """All settings of a server; a worker needs `data`, `database`, `storage` and the S3 members only.

    Attributes:
        data: Folder for everything that is not elsewhere: database, blobs, unfinished uploads, scratch.
        database: SQLAlchemy URL; empty = SQLite in `data`. `postgresql://` takes the extra `postgres`.
        storage: Folder or `s3://bucket/prefix`; empty = `data`/blobs.
        s3_endpoint: Address of an S3-compatible server, e.g. `http://minio:9000`; empty = Amazon's.
        s3_region: Region of the bucket.
        bind: Address to listen on.
        port: Port; 0 = any free one.
        allowed_hosts: Names the `Host` header may hold, besides the loopback ones.
        trusted_proxies: Addresses and networks of proxies whose headers are believed.
        user_header: Header in which those proxies name the person they signed in; empty = none is.
        tls_cert: PEM file with the certificate chain; empty = plain HTTP (put a proxy with TLS in front).
        tls_key: PEM file with its key.
        max_blob_mb: Largest blob in MiB.
        quota_gb: Bytes of complete blobs an organization may hold, in GiB; 0 = no limit.
        min_free_mb: Uploads are refused (507) when the disk has less free than this, in MiB.
        requests_per_second: Rate limit of each key; twice that in a burst. 0 = none.
        wrong_keys_per_second: Rate limit of one wrong key from one address; 50 in a burst.
        uploads_at_once: Uploads one organization may have open at once.
        head_timeout: Seconds in which the head of a request must have arrived.
        idle_timeout: Seconds in which the next piece of a body must arrive.
        min_bytes_per_second: A body slower than this, over `idle_timeout` and longer, is given up (408).
        connections: Connections at once. A quarter is for those who came with a right key; of the others the
            one that waits for longest goes when there are too many, or more than a quarter from one address.
        check_processes: Processes that check uploaded Parquet files.
        check_memory_mb: Memory of such a process, in MiB, above what it takes to start.
        check_seconds: CPU seconds one file may take.
        max_rows: Rows one file may have.
        max_decoded_mb: Decoded size one file may have, in MiB.
        max_ratio: Decoded size over file size that is accepted above 64 MiB.
        workers: Worker processes the server starts itself; 0 = run `mld worker` elsewhere.
        lease_seconds: A job whose worker gave no sign of life for this long is given to another.
        job_seconds: Time one evaluation may take.
        job_memory_mb: Memory one evaluation may take, in MiB, above what it takes to start; 0 = half of the
            machine's.
        jobs_at_once: Evaluations one organization may have queued or running.
        cache_gb: Local copies of blobs kept where the storage is S3, in GiB.
        spool_days: Days an unfinished upload is kept.
        unsealed_days: Days a complete file is kept that no seal names; 0 = for ever.
        log_level: debug, info, warning or error.
    """

    data: Path = field(default_factory=lambda: Path("~/.mld-server").expanduser())
    database: str = ""
    storage: str = ""
    s3_endpoint: str = ""
    s3_region: str = "us-east-1"
    bind: str = "127.0.0.1"
    port: int = 8765
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    user_header: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    max_blob_mb: int = 4096
    quota_gb: float = 0
    min_free_mb: int = 256
    requests_per_second: float = 1000
    wrong_keys_per_second: float = 5
    uploads_at_once: int = 64
    head_timeout: float = 10
    idle_timeout: float = 30
    min_bytes_per_second: int = 1024
    connections: int = 1000
    check_processes: int = 1
    check_memory_mb: int = 1024
    check_seconds: int = 60
    max_rows: int = 50_000_000
    max_decoded_mb: int = 16384
    max_ratio: float = 200
    workers: int = 1
    lease_seconds: float = 20
    job_seconds: float = 6 * 3600
    job_memory_mb: int = 0
    jobs_at_once: int = 100
    cache_gb: float = 20
    spool_days: float = 7
    unsealed_days: float = 30
    log_level: str = "info"

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL in use."""
        if not self.database:
            return f"sqlite:///{self.data.absolute() / 'mld.sqlite3'}"
        plain = "postgresql://"
        if self.database.startswith((plain, "postgres://")):  # psycopg 3, not SQLAlchemy's default
            return "postgresql+psycopg://" + self.database.split("://", 1)[1]
        return self.database

    @property
    def hosts(self) -> frozenset[str]:
        """Names the `Host` header may hold, without a port, lower case."""
        own = (self.bind,) if self.bind not in {"0.0.0.0", "::"} else ()  # noqa: S104 - compared, not bound
        return frozenset(name.lower() for name in (*_LOCAL_HOSTS, *own, *self.allowed_hosts))

    @property
    def blobs_root(self) -> str:
        """Where complete blobs lie: a folder or an S3 address."""
        return self.storage or str(self.data.absolute() / "blobs")

    @property
    def job_memory(self) -> int:
        """Bytes one evaluation may take."""
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return self.job_memory_mb * MIB or machine // 2

    def folder(self, name: str) -> Path:
        """A folder of the server's own: spool, cache or work."""
        return self.data.absolute() / name


def load_settings(changes: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None) -> Settings:
    """Settings from `MLD_SERVER_*` variables, with `changes` (those that are not None) on top.

    Raises:
        ValueError: a variable or change that is not of the setting's kind; the message names it.

    >>> load_settings({"port": 9000}, {"MLD_SERVER_ALLOWED_HOSTS": "mld.example.org, mld"}).allowed_hosts
    ('mld.example.org', 'mld')
    >>> load_settings(env={"MLD_SERVER_QUOTA_GB": "0.5"}).quota_gb
    0.5
    """
    environ = os.environ if env is None else env
    found: dict[str, Any] = {}
    for item in dataclasses.fields(Settings):
        text = environ.get(ENV_PREFIX + item.name.upper())
        if text is not None:
            found[item.name] = _parse(item, text)
    found.update({name: value for name, value in (changes or {}).items() if value is not None})
    chosen = Settings(**found)
    return dataclasses.replace(chosen, data=Path(chosen.data).expanduser().absolute())


_KINDS: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float, "str": str, "Path": Path}


def _parse(item: dataclasses.Field[Any], text: str) -> Any:
    if item.type == "tuple[str, ...]":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return _KINDS[str(item.type)](text)
    except ValueError:
        raise ValueError(f"{ENV_PREFIX}{item.name.upper()}={text!r}: expected {item.type}") from None


def to_env(settings: Settings) -> dict[str, str]:
    """The variables that make `load_settings` give the same settings again, for a process of ours.

    >>> load_settings(env=to_env(load_settings({"port": 1}, {}))).port
    1
    """
    found = {}
    for item in dataclasses.fields(Settings):
        value = getattr(settings, item.name)
        found[ENV_PREFIX + item.name.upper()] = ",".join(value) if isinstance(value, tuple) else str(value)
    return found
