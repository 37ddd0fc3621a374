"""A store on S3-compatible storage, read in place: paths into a bucket that read as those of a folder do.

`s3://bucket/prefix` names it. The keys are those of `AWS_*` or of the machine's role; endpoint and region
stand in the address (`?endpoint_override=http://host:9000&region=...`) or in `AWS_ENDPOINT_URL` and
`AWS_REGION`, and become part of the path, so that a worker on another machine reads the same place. Nothing
is written there: whatever would write is refused in a sentence. A bucket that stops answering is an error,
never an absent file.
"""

from __future__ import annotations

import fnmatch
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from typing_extensions import Self

T = TypeVar("T")
R = TypeVar("R")

SCHEME = "s3:"
EXPECTED = (
    "expected s3://bucket/prefix, with ?endpoint_override=http://host:port for a server that is not Amazon's"
)
_ENDPOINT, _REGION, _HTTP = "endpoint_override", "region", "scheme"
_ASK_SECONDS, _READ_SECONDS = 5, 60
_AT_ONCE = 16
_pool = threading.local()
_DENIED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "HTTP status 401", "HTTP status 403")
_BASE: Any = type(Path())


class UnreachableStoreError(ConnectionError):
    """A bucket that can not be read: its name, the keys, or whoever should answer."""


class BucketPath(_BASE):  # type: ignore[misc]  # of the system's own kind, which only a running Python knows
    """A path in a bucket. Its second part is the bucket's name with what else says where it is."""

    __slots__ = ()

    # -- what it is ------------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return "s3://" + self.key

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), tuple(self.parts)

    @property
    def key(self) -> str:
        """Bucket and key, as pyarrow names them."""
        bucket, *rest = self.parts[1:]
        return "/".join([str(bucket).partition("?")[0], *rest])

    @property
    def address(self) -> str:
        """The whole address, which a shell or another machine opens again."""
        query = self.parts[1].partition("?")[2]
        return f"{self}?{query}" if query else str(self)

    @property
    def filesystem(self) -> pafs.FileSystem:
        """What reads it."""
        return _filesystem(self.parts[1].partition("?")[2])

    def absolute(self) -> Self:
        """Itself."""
        return self

    expanduser = resolve = absolute

    # -- reading ---------------------------------------------------------------------------------------------

    def entries(self) -> list[tuple[str, bool]]:
        """Names in this folder, and whether each is a folder, sorted; none where it is not there.

        Raises:
            UnreachableStoreError: The bucket does not answer.
        """
        import pyarrow.fs as pafs  # noqa: PLC0415  whoever reads folders waits for no storage's library

        chosen = pafs.FileSelector(self.key, allow_not_found=True)
        found = self._asked(lambda: self.filesystem.get_file_info(chosen))
        return sorted((info.base_name, info.type == pafs.FileType.Directory) for info in found)

    def iterdir(self) -> Iterator[Self]:
        """What lies in this folder."""
        return (self / name for name, _ in self.entries())

    def glob(self, pattern: str, **_: Any) -> Iterator[Self]:
        """What fits a pattern without `**`."""
        first, rest = (*pattern.split("/", 1), "")[:2]
        for name, is_folder in self.entries():
            if fnmatch.fnmatchcase(name, first) and (is_folder or not rest):
                yield from (self / name).glob(rest) if rest else (self / name,)

    def is_dir(self, **_: Any) -> bool:
        """Whether anything lies below it."""
        return self._kind() == "Directory"

    def is_file(self, **_: Any) -> bool:
        """Whether it is an object."""
        return self._kind() == "File"

    def exists(self, **_: Any) -> bool:
        """Whether it is an object or a folder of some."""
        return self._kind() != "NotFound"

    def stat(self, **_: Any) -> os.stat_result:
        """Size and time of an object.

        Raises:
            FileNotFoundError: There is none.
        """
        info = self._info()
        if not info.is_file:
            raise FileNotFoundError(2, "no such object", str(self))
        made = (info.mtime_ns or 0) // 1_000_000_000
        return os.stat_result((0o100444, 0, 0, 1, 0, 0, info.size, made, made, made))

    def read_bytes(self) -> bytes:
        """The whole object."""
        with self.source() as file:
            return bytes(self._asked(file.read))

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_: Any) -> str:
        """The whole object as text."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def open(self, mode: str = "r", *_: Any, **__: Any) -> Any:
        """The object as a binary file; other modes are refused."""
        return self.source() if mode == "rb" else self._refused()

    def source(self) -> Any:
        """The object as Arrow's file, which reads what is asked of it and no more.

        Raises:
            FileNotFoundError: There is none. UnreachableStoreError: The bucket does not answer.
        """
        return self._asked(lambda: self.filesystem.open_input_file(self.key))

    def unreachable(self, error: Exception) -> UnreachableStoreError | None:
        """What is wrong with the bucket where that is what Arrow met; None where it is the object."""
        return UnreachableStoreError(_told(self, str(error))) if "AWS Error" in str(error) else None

    def _kind(self) -> str:
        return str(self._info().type.name)

    def _info(self) -> Any:
        return self._asked(lambda: self.filesystem.get_file_info(self.key))

    def _asked(self, ask: Any) -> Any:
        try:
            return ask()
        except FileNotFoundError as error:
            raise FileNotFoundError(2, "no such object", str(self)) from error
        except OSError as error:
            raise self.unreachable(error) or error from error

    # -- writing is refused ----------------------------------------------------------------------------------

    def _refused(self, *_: Any, **__: Any) -> NoReturn:
        raise OSError(
            f"{self}: a store in a bucket is read in place and never written; copy it to a folder first "
            "(e.g. with rclone or `aws s3 sync`) and name that"
        )

    __fspath__ = mkdir = touch = unlink = rmdir = rename = replace = write_bytes = write_text = _refused
    chmod = symlink_to = hardlink_to = lstat = rglob = _refused


def each(ask: Callable[[T], R], items: Sequence[T], place: Path) -> list[R]:
    """What comes of each item, in their order; where they lie in a bucket several are asked for at once.

    A request waits for the way there and back, whatever it asks for. What is asked inside of `ask` shares the
    same few threads.
    """
    most: int = getattr(_pool, "share", _AT_ONCE)
    threads = min(most, len(items))
    if threads < 2 or not isinstance(place, BucketPath):
        return [ask(item) for item in items]

    def begin() -> None:
        _pool.share = most // threads

    with ThreadPoolExecutor(threads, "mld-bucket", begin) as pool:
        return list(pool.map(ask, items))


def is_bucket(root: object) -> bool:
    """Whether a text or path names a store in a bucket.

    >>> is_bucket("s3://records/team"), is_bucket(Path("s3:/records")), is_bucket("/data/s3")
    (True, True, False)
    """
    return isinstance(root, BucketPath) or (isinstance(root, str | Path) and str(root).startswith("s3:/"))


def bucket_path(root: str | Path) -> Path:
    """The path of an address.

    Raises:
        ValueError: It is no address of a bucket, or holds keys.

    >>> bucket_path("s3://records/team?endpoint_override=http://minio:9000&region=eu-west-1").address
    's3://records/team?endpoint_override=http%3A%2F%2Fminio%3A9000&region=eu-west-1'
    """
    if isinstance(root, BucketPath):
        return root
    text = "s3://" + str(root).removeprefix(SCHEME).lstrip("/")
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError(
            f"store s3://...@{parts.netloc.rpartition('@')[2]}{parts.path}: an address holds no keys; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    given = dict(parse_qsl(parts.query))
    unknown = sorted(given.keys() - {_ENDPOINT, _REGION, _HTTP})
    if unknown:
        raise ValueError(f"store {text!r}: unknown {unknown} after the `?`; {EXPECTED}")
    if not parts.netloc or ":" in parts.netloc:
        raise ValueError(f"store {text!r}: no bucket is named; {EXPECTED}")
    made: Path = BucketPath(SCHEME, _with_query(parts.netloc, given), *unquote(parts.path).split("/"))
    return made


def _with_query(bucket: str, given: dict[str, str]) -> str:
    endpoint = (
        given.get(_ENDPOINT) or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    region = given.get(_REGION) or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    kept: dict[str, str] = {}
    if endpoint:
        # A path that was made of the address has lost one of its slashes.
        scheme, _, host = endpoint.replace(":/", "://").replace(":///", "://").rpartition("://")
        kept[_ENDPOINT] = f"{scheme or given.get(_HTTP) or 'https'}://{host.rstrip('/')}"
    if region:
        kept[_REGION] = region
    return f"{bucket}?{urlencode(kept, quote_via=quote, safe='')}" if kept else bucket


@lru_cache(maxsize=16)
def _filesystem(query: str, attempts: int = 3, seconds: float = _READ_SECONDS) -> pafs.FileSystem:
    import pyarrow.fs as pafs  # noqa: PLC0415  the same

    given = dict(parse_qsl(query))
    options: dict[str, Any] = {"connect_timeout": _ASK_SECONDS, "request_timeout": seconds}
    if _ENDPOINT in given:
        endpoint = urlsplit(given[_ENDPOINT])
        options.update(endpoint_override=endpoint.netloc, scheme=endpoint.scheme)
    options["region"] = given.get(_REGION, "us-east-1" if _ENDPOINT in given else None)
    retries = pafs.AwsStandardS3RetryStrategy(max_attempts=attempts)
    return pafs.S3FileSystem(**options, retry_strategy=retries)


def check_answers(path: Path) -> None:
    """Refuse a bucket that is not there, or whose keys are wrong, within some seconds.

    Raises:
        UnreachableStoreError: It can not be read; the message says what to set.
    """
    if not isinstance(path, BucketPath):
        return
    import pyarrow.fs as pafs  # noqa: PLC0415  the same

    try:
        # One attempt: whoever named it waits.
        one = _filesystem(path.parts[1].partition("?")[2], 1, _ASK_SECONDS)
        one.get_file_info(pafs.FileSelector(path.key, allow_not_found=False))
    except FileNotFoundError as error:
        raise UnreachableStoreError(
            f"there is no store at {path.address}: the bucket holds nothing there; give s3://bucket/prefix "
            "of the folder that holds the models"
        ) from error
    except OSError as error:
        raise UnreachableStoreError(_told(path, str(error))) from error


def _told(path: BucketPath, said: str) -> str:
    where = path.address
    if "NO_SUCH_BUCKET" in said or "NoSuchBucket" in said:
        return f"{where}: there is no bucket {path.parts[1].partition('?')[0]!r}; {EXPECTED}"
    why = " ".join(said.rpartition("AWS Error ")[2].split())[:200] or "no reason given"
    named = os.environ.get("AWS_ACCESS_KEY_ID")
    # A request without keys is a bad one (400) to some servers; one that failed otherwise had a role's keys.
    if any(word in said for word in _DENIED) or (named is None and "HTTP status 400" in said):
        keys = (
            f"AWS_ACCESS_KEY_ID={named!r} may not"
            if named
            else "no AWS_ACCESS_KEY_ID is set, and without keys none may"
        )
        return (
            f"{where} can not be read: {keys} list it ({why}); set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
            "(and AWS_SESSION_TOKEN) to keys that may list and read the bucket"
        )
    return (
        f"{where} can not be read ({why}); look at the address and the network, or set AWS_ENDPOINT_URL to "
        "where the storage answers"
    )
