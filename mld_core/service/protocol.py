"""What client and server say to each other: routes, headers, answers, problems. Standard library only.

The bodies of requests are in the OpenAPI document (`/v1/openapi.json`, docs/openapi.json).

**Version.** The base address is `MLD_API_ENDPOINT`; every path below hangs on it. Client and server send
`MLD-Protocol: <major>.<minor>`. The same major works together; a side ignores members it does not know, and
a member that came with a later minor is never required of the other side.

**Authentication.** `Authorization: Bearer mldbg_<key id>_<secret>`, nothing else (no cookie, no query).
401: no key, or one that is wrong, expired or revoked. 403: the key lacks the scope the route asks for. What
belongs to another organization, or to a model the key's person may not see, is 404, as if it were not there.
A server behind a proxy that signs people in may be told to believe the header in which it names them; then no
key is asked for, but `MLD-Protocol` is on every request that changes something.

**Problems.** Every answer of 400 and above is `application/problem+json` with a `Problem`: `type` is one of
`PROBLEMS`, and `value`, `expectation`, `fix` say what came, what was expected, what to do. Some carry more:
see the members after `fix`.

**Uploads** (content-addressed, resumable). A blob is named by the SHA-256 of its content, 64 lower-case hex
digits.

1. `HEAD /v1/blobs/{sha256}`: 404 = nothing there, start at 0. 200 with `Upload-Offset` (bytes there),
   `Upload-Length` (bytes in all) and `Upload-Complete` (`?1` or `?0`).
2. `PUT /v1/blobs/{sha256}?offset=N`, `Upload-Length: <bytes in all>`, `Upload-Complete: ?1` if this body
   reaches the end, else `?0`; the body holds the bytes from N on. 201 = the blob is complete now, 200 =
   more is expected or it was complete before (a replay: the body is not looked at). Both answer
   `BlobState`. 409 `wrong-offset` carries `offset`: continue there. 409 `digest-mismatch`: the bytes in all
   have another SHA-256; what was there is discarded, start at 0. 413: larger than the server takes. 429
   with `Retry-After`: too many requests, or another connection is uploading this very blob (`upload-busy`).
   507 with `Retry-After`: the server's disk or the organization's quota is full; what arrived is kept. 408:
   the body came too slowly. A body may be cut into any number of PUTs; a broken one keeps the bytes that
   arrived.
3. The rank's seal.json is uploaded in the same way. Then `POST /v1/runs/{run_id}/seals` with its digest,
   once per rank, when all files of the manifest are complete. All are committed at once or nothing. (Clients
   of 1.0 send the manifest itself: seal.json as `manifest`, attempt.json as `opening`, and the five members
   that name the place.) From 1.2 on the digest of a large file is checked after its PUT was answered: wrong
   bytes are discarded, and the seal says that they are missing. 201 = sealed, 200 = this very seal was
   there. 409 `missing-blobs` carries `missing` (digests): upload those and seal again. 409 `seal-conflict`:
   this rank of this attempt was sealed with other files; the first stands. 422 `refused-part` carries
   `refused`: files that are not what the manifest says, or not Parquet we accept. 503 with `Retry-After`:
   the check of the files has not finished; post again.

**Small ranks** (from 1.2 on) go up whole: `POST /v1/runs/{run_id}/ranks` with a body of at most
`MAX_RANK_BYTES` and its line: `{"files": [["<sha256>", <bytes>], ...]}` and a line end, then the bytes of
those files one after another, the rank's seal.json last. The answers are those of a seal; nothing is kept of
a rank that is not sealed.

**Downloads.** `GET /v1/blobs/{sha256}` with an optional single `Range: bytes=a-b`.

**Evaluations.** `POST /v1/runs/{run_id}/evaluations` answers 202 and a `Job`, the one that is there where the
same was asked of the same records and no `result_name` was given; poll `GET /v1/jobs/{job_id}`.
`DELETE` cancels. A `Result`'s files are blobs: `GET /v1/results/{result_id}/files`.

**Lists** answer `{"items": [...], "next": cursor or null}`; pass `cursor=` and `limit=` (at most
`MAX_PAGE`).
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING or sys.version_info >= (3, 12):
    from typing import TypedDict
else:
    try:  # the server builds its document from these classes, which before 3.12 takes the backport
        from typing_extensions import TypedDict
    except ImportError:
        from typing import TypedDict

PROTOCOL_MAJOR = 1
PROTOCOL_MINOR = 4
MANIFESTS_SINCE = SEARCHES_SINCE = 1
"""The minor in which manifests became blobs, and lists are ordered and searched by the service."""
RANKS_SINCE = DIGESTS_LATER_SINCE = 2
"""The minor in which a small rank goes up in one request, and a large file's digest is told by the seal."""
VERDICTS_SINCE = 3
"""The minor in which what people said of samples is kept and read."""
CORRECTED_BOXES_SINCE = 4
"""The minor in which true boxes may be said to lie elsewhere, or to hold nothing."""
PROTOCOL = f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"

HEADER_PROTOCOL = "MLD-Protocol"
HEADER_OFFSET = "Upload-Offset"
HEADER_LENGTH = "Upload-Length"
HEADER_COMPLETE = "Upload-Complete"
HEADER_REQUEST_ID = "X-Request-ID"
TRUE, FALSE = "?1", "?0"

KEY_PREFIX = "mldbg_"
PROBLEM_JSON = "application/problem+json"
PROBLEM_TYPE = "urn:mld:problem:"
DEFAULT_PAGE = 100
MAX_PAGE = 1000
MAX_JSON_BYTES = 64 << 20
"""The largest JSON answer a client reads."""
MAX_BODY_BYTES = 256 << 10
"""The largest JSON body a server takes."""
MAX_SEAL_BYTES = 64 << 20
"""The largest manifest: of a rank with ten thousands of parts."""
MAX_RANK_BYTES = 8 << 20
"""The most bytes of all files of a rank that goes up in one request."""
MAX_RANK_HEAD = 256 << 10
"""The longest line before them."""

SHA256 = re.compile(r"[0-9a-f]{64}")

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
"""`read` looks, `write` uploads, seals and evaluates, `admin` manages keys. None implies another."""

Role = Literal["viewer", "writer", "admin"]
ROLES: dict[Role, tuple[Scope, ...]] = {
    "viewer": ("read",),
    "writer": ("read", "write"),
    "admin": ("read", "write", "admin"),
}
"""What people may do, as scopes."""

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
JOB_STATES: tuple[JobState, ...] = ("queued", "running", "done", "failed", "cancelled")
FINISHED_STATES: tuple[JobState, ...] = ("done", "failed", "cancelled")

PROBLEMS: dict[str, int] = {
    "bad-request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "too-slow": 408,
    "wrong-offset": 409,
    "digest-mismatch": 409,
    "missing-blobs": 409,
    "seal-conflict": 409,
    "name-taken": 409,
    "conflict": 409,
    "too-large": 413,
    "unsupported-media-type": 415,
    "removed": 410,
    "range-not-satisfiable": 416,
    "wrong-host": 421,
    "invalid": 422,
    "refused-part": 422,
    "protocol": 426,
    "too-many-requests": 429,
    "upload-busy": 429,
    "headers-too-large": 431,
    "internal": 500,
    "unavailable": 503,
    "check-pending": 503,
    "storage-full": 507,
}
"""Short name -> HTTP status; `Problem.type` is `PROBLEM_TYPE` and the short name."""

RETRYABLE = frozenset({408, 429, 500, 502, 503, 504, 507})
"""Answers after which the same request may be sent again (after `Retry-After`, where it is there)."""


class Problem(TypedDict, total=False):
    """The body of every answer of 400 and above."""

    type: str
    title: str
    status: int
    detail: str
    value: Any
    expectation: str
    fix: str
    request_id: str
    offset: int
    missing: list[str]
    refused: list[dict[str, str]]
    """Each with `sha256`, `part`, `family`, `reason`."""


class Whoami(TypedDict):
    """`GET /v1/whoami`."""

    organization: str
    organization_id: str
    key_id: str
    key_name: str
    scopes: list[Scope]
    expires_at: str | None
    person: str
    """Name of the person whose key it is, empty where it is nobody's."""
    role: Role | None
    models: list[str]
    """Patterns of the names of the models that are seen; `*` stands for any text."""
    server_version: str
    protocol: str
    max_blob_bytes: int


class Run(TypedDict):
    """A run of the key's organization; in a list, `info` tells the task only."""

    run_id: str
    model_name: str
    version_name: str
    info: dict[str, Any]
    tags: list[str]
    note: str
    archived: bool
    owner: str
    """The person who made it, or the name of the key."""
    created_at: str
    updated_at: str


class BlobState(TypedDict):
    """The answer to a PUT."""

    offset: int
    complete: bool


class Seal(TypedDict):
    """The answer to a seal."""

    seal_id: str
    pass_id: str
    sealed_ranks: list[int]
    """Ranks of this attempt that have sealed."""
    world_size: int
    complete: bool
    """Whether all ranks have."""


class Pass(TypedDict):
    """One pass; `attempts` are oldest first."""

    pass_id: str
    run_id: str
    dataset_type: str
    n_epoch: int | None
    pass_no: int
    sealed: bool
    attempts: list[PassAttempt]


class PassAttempt(TypedDict):
    """One attempt at a pass: the ranks that sealed."""

    attempt: str
    world_size: int
    sealed: bool
    ranks: list[int]
    rows: dict[str, int]
    bytes: int


class PassFile(TypedDict):
    """One file of a sealed rank."""

    part: str
    family: str
    sha256: str
    bytes: int
    rows: int


class PassRank(TypedDict):
    """One sealed rank with everything that is needed to lay it out on disk again."""

    attempt: str
    rank: int
    manifest: dict[str, Any] | None
    """None where the answer has no room for it: it is the blob `manifest_sha256`."""
    manifest_sha256: str | None
    """None where a server of 1.0 took the seal."""
    opening: dict[str, Any]
    files: list[PassFile]


class VerdictsKept(TypedDict):
    """The answer to verdicts that were sent."""

    added: int
    there: int
    """Those that were there already."""


class Job(TypedDict):
    """An evaluation on its way."""

    job_id: str
    run_id: str
    state: JobState
    progress: float
    """0 to 1."""
    stage: str
    reason: str | None
    """Why it failed or was cancelled."""
    error: str | None
    """Class of the error where it is one of the evaluator's: NotFoundError, ValueError ..."""
    result_id: str | None
    attempts: int
    created_at: str
    started_at: str | None
    finished_at: str | None
    rows: int | None
    """Sample rows of the passes that it looks at; null before it has begun. Older servers have it not."""


class ResultInfo(TypedDict):
    """A stored result; `info` is its whole result.json."""

    result_id: str
    run_id: str
    result_name: str
    method_name: str
    n_epoch: int | str | None
    options: dict[str, Any]
    created_at: str
    completed_at: str
    info: dict[str, Any]


class ResultFile(TypedDict):
    """One file of a result's folder."""

    name: str
    sha256: str
    bytes: int


class Key(TypedDict):
    """A key without its secret."""

    key_id: str
    name: str
    organization_id: str
    scopes: list[Scope]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None
    person_id: str | None
    person: str
    """Whose it is; empty where it is nobody's."""


class Person(TypedDict):
    """A person: what they may do, and the models they may see."""

    person_id: str
    name: str
    role: Role
    models: list[str]
    created_at: str
    disabled_at: str | None


class NewKey(Key):
    """The answer to `POST /v1/keys`: the only time the key is shown."""

    key: str


@dataclass(frozen=True)
class Route:
    """One route: method, path template, and the scope a key must have (None: no key is asked for)."""

    method: str
    path: str
    scope: Scope | None
    summary: str
    root_only: bool = False
    also: tuple[Scope, ...] = ()
    """Further scopes each of which will do: a key that may only upload has to ask what is there."""

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """Scopes of which a key must have one; none where no key is asked for."""
        return () if self.scope is None else (self.scope, *self.also)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", None, "Is the server up, and can it reach its database and storage?"),
    Route("GET", "/metrics", "read", "Prometheus metrics of the whole server.", root_only=True),
    Route("GET", "/v1/openapi.json", "read", "This interface as an OpenAPI document."),
    Route("GET", "/v1/whoami", "read", "Whose key is this, and what may it do?", also=("write", "admin")),
    Route("POST", "/v1/runs", "write", "Find or create a run."),
    Route("GET", "/v1/runs", "read", "List runs."),
    Route("GET", "/v1/runs/{run_id}", "read", "One run."),
    Route("PATCH", "/v1/runs/{run_id}", "write", "Set members of a run's info, its tags, note and flag."),
    Route("HEAD", "/v1/blobs/{sha256}", "read", "How much of a blob is there?", also=("write",)),
    Route("PUT", "/v1/blobs/{sha256}", "write", "Upload a blob, or continue an upload."),
    Route("GET", "/v1/blobs/{sha256}", "read", "Download a blob."),
    Route("POST", "/v1/runs/{run_id}/seals", "write", "Seal one rank of a pass."),
    Route("POST", "/v1/runs/{run_id}/ranks", "write", "Send all files of a small rank, and seal it."),
    Route("GET", "/v1/runs/{run_id}/passes", "read", "List the passes of a run."),
    Route("GET", "/v1/runs/{run_id}/passes/{pass_id}", "read", "One pass with its manifests and files."),
    Route("POST", "/v1/runs/{run_id}/verdicts", "write", "Add what people said of a run's samples."),
    Route(
        "GET", "/v1/runs/{run_id}/verdicts", "read", "What people said of a run's samples.", also=("write",)
    ),
    Route("POST", "/v1/runs/{run_id}/evaluations", "write", "Ask for an evaluation."),
    Route("GET", "/v1/jobs", "read", "List evaluations, newest first."),
    Route("GET", "/v1/jobs/{job_id}", "read", "How far is an evaluation?"),
    Route("DELETE", "/v1/jobs/{job_id}", "write", "Cancel an evaluation."),
    Route("GET", "/v1/runs/{run_id}/results", "read", "List the results of a run."),
    Route("GET", "/v1/results", "read", "List results, newest first."),
    Route("GET", "/v1/results/{result_id}", "read", "One result."),
    Route(
        "GET", "/v1/results/{result_id}/files", "read", "The files of a result, to be downloaded as blobs."
    ),
    Route("POST", "/v1/runs/{run_id}/removals", "admin", "Remove a run, passes, results or samples."),
    Route("GET", "/v1/removals", "admin", "List what was removed."),
    Route("POST", "/v1/keys", "admin", "Create a key; it is shown this once."),
    Route("GET", "/v1/keys", "admin", "List keys."),
    Route("DELETE", "/v1/keys/{key_id}", "admin", "Revoke a key."),
    Route("POST", "/v1/people", "admin", "Add a person."),
    Route("GET", "/v1/people", "admin", "List people."),
    Route("PATCH", "/v1/people/{person_id}", "admin", "Set a person's role and the models they may see."),
    Route("DELETE", "/v1/people/{person_id}", "admin", "Refuse a person, and all keys of theirs."),
    Route("POST", "/v1/organizations", "admin", "Create an organization.", root_only=True),
    Route("GET", "/v1/organizations", "admin", "List organizations.", root_only=True),
)
"""Every route there is; a test compares the server with this list."""


def parse_protocol(text: str) -> tuple[int, int] | None:
    """The two numbers of an `MLD-Protocol` header, or None if it is not one.

    >>> parse_protocol("1.4"), parse_protocol("x")
    ((1, 4), None)
    """
    match = re.fullmatch(r"(\d{1,4})\.(\d{1,4})", text.strip())
    return (int(match[1]), int(match[2])) if match else None


def problem_name(problem: Problem | dict[str, Any]) -> str:
    """The short name of a problem, empty if it is not one of ours.

    >>> problem_name({"type": "urn:mld:problem:wrong-offset"})
    'wrong-offset'
    """
    kind = str(problem.get("type", ""))
    return kind[len(PROBLEM_TYPE) :] if kind.startswith(PROBLEM_TYPE) else ""
