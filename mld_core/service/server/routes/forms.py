"""The bodies and parameters of requests, checked before anything is done with them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Path, Query
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mld_core.service.protocol import DEFAULT_PAGE, MAX_PAGE, Role, Scope
from mld_core.service.server.storage.keys import ALL_MODELS

_MAX_NAME = 300
_MAX_RESULT_NAME = 600
_INT = 1 << 31
MAX_CLASSES = 100_000
"""More classes than any data set has; an evaluation takes memory for each."""


def storable(text: str) -> str:
    """Refuse what no database keeps: lone surrogates and NUL."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds a lone surrogate, which is no text") from None
    if "\x00" in text:
        raise ValueError("it holds a NUL character")
    return text


Name = Annotated[str, Field(min_length=1, max_length=_MAX_NAME), AfterValidator(storable)]
ResultName = Annotated[str, Field(min_length=1, max_length=_MAX_RESULT_NAME), AfterValidator(storable)]
Tag = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\s,]+$"), AfterValidator(storable)]
InputId = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(storable)]
Epoch = Annotated[int, Field(ge=-_INT, lt=_INT)]

RunId = Annotated[str, Path(pattern=r"^run_[0-9a-f]{24}$")]
PassId = Annotated[str, Path(pattern=r"^pass_[0-9a-f]{24}$")]
JobId = Annotated[str, Path(pattern=r"^job_[0-9a-f]{24}$")]
ResultId = Annotated[str, Path(pattern=r"^result_[0-9a-f]{24}$")]
PersonId = Annotated[str, Path(pattern=r"^person_[0-9a-f]{24}$")]
KeyId = Annotated[str, Path(pattern=r"^key_[0-9a-f]{24}$")]
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the content")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Cursor = Annotated[
    str | None, Query(pattern=r"^[a-z]+_[0-9a-f]{24}$", description="`next` of the page before")
]
NameFilter = Annotated[str | None, Query(max_length=_MAX_NAME), AfterValidator(lambda v: v and storable(v))]
PAGE = DEFAULT_PAGE


class Form(BaseModel):
    """Members of later minors are ignored; numbers are numbers, not texts that look like one."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Info(Form):
    """What a run is; members of later releases are kept as they are."""

    model_config = ConfigDict(extra="allow", strict=True)

    task: Annotated[str, Field(max_length=100), AfterValidator(storable)] | None = None
    n_class: Annotated[int, Field(ge=0, le=MAX_CLASSES)] | None = None
    class_names: (
        Annotated[list[Annotated[str, Field(max_length=1000)]], Field(max_length=MAX_CLASSES)] | None
    ) = None
    generation: Annotated[int, Field(ge=0, lt=1_000_000)] | None = None

    def given(self) -> dict[str, Any]:
        """The members that came."""
        return self.model_dump(exclude_unset=True)


class RunForm(Form):
    """Finds or creates a run; `info` adds members that are not there, as `Store.ensure_run`."""

    model_name: Name
    version_name: Name
    info: Info = Info()


class RunPatchForm(Form):
    """Sets members of a run's `info`, and its tags, note and archived flag; the last writer wins."""

    info: Info = Info()
    tags: Annotated[list[Tag], Field(max_length=50)] | None = None
    note: Annotated[str, Field(max_length=4000), AfterValidator(storable)] | None = None
    archived: bool | None = None


class SealForm(Form):
    """One rank's seal: the digest of its seal.json, which was uploaded as a blob."""

    manifest_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class EvaluationForm(Form):
    """An evaluation, as the arguments of `Evaluator.request_evaluation`."""

    result_name: ResultName | None = None
    n_epoch: Epoch | Literal["latest"] | None = "latest"
    method_name: Annotated[str, Field(max_length=100), AfterValidator(storable)] = "default"
    options: dict[str, Any] | None = None


class RemovalForm(Form):
    """What to remove of a run: epochs, samples or results; nothing named = all of it, or all of a split."""

    dataset_type: Name | None = None
    epochs: Annotated[list[Epoch | None], Field(max_length=1000)] = []
    input_ids: Annotated[list[InputId], Field(max_length=1000)] = []
    results: Annotated[list[ResultName], Field(max_length=1000)] = []
    dry_run: bool = False


class KeyForm(Form):
    """A new key, of a person or with scopes; only the root organization may name another than its own."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(storable)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)] | None = None
    person_id: str | None = Field(default=None, pattern=r"^person_[0-9a-f]{24}$")
    expires_in_days: Annotated[float, Field(gt=0, le=36500)] | None = None
    organization_id: str | None = Field(default=None, pattern=r"^org_[0-9a-f]{24}$")


class PersonForm(Form):
    """A new person; `models` are names, in which `*` stands for any text."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(storable)]
    role: Role
    models: Annotated[list[Name], Field(min_length=1, max_length=100)] = [ALL_MODELS]
    organization_id: str | None = Field(default=None, pattern=r"^org_[0-9a-f]{24}$")


class PersonPatchForm(Form):
    """What is given is set."""

    role: Role | None = None
    models: Annotated[list[Name], Field(min_length=1, max_length=100)] | None = None


class OrganizationForm(Form):
    """A new organization."""

    name: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(storable)]
