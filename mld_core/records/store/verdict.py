"""A verdict: one person's word on a sample, a true box or a predicted one; and what stands of several."""

from __future__ import annotations

import getpass
import math
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from mld_core.records.format.manifest import utc_now

KINDS = ("relabel", "ok", "ambiguous", "hard")
BOX_KINDS = ("missing", "nothing")
"""What is said of a predicted box where no true box stands, beside "ambiguous"."""

TRUE_BOX_KINDS = ("moved", "nothing")
"""What is said of a true box beside `KINDS`: it lies elsewhere, or no object stands in it."""

UNDO = "undo"


@dataclass(frozen=True)
class Subject:
    """What a verdict is about: a sample, its true box number `truth`, or a predicted box without one."""

    dataset_type: str
    input_id: str
    truth: int | None = None
    box: tuple[float, ...] | None = None


UNSEEN: Final = "accepted with others, not looked at"
"""The note of a verdict that a person gave to a list as a whole: it says nothing of how right the list is."""


@dataclass(frozen=True)
class Verdict:
    """One person's word on one sample or one true box.

    Attributes:
        kind: "relabel" (the label is wrong, `label` is right), "ok", "ambiguous", "hard"; of a predicted box
            without a truth, or one that was drawn, "missing" (an object of class `label` stands there, its
            label is missing), "nothing" (no object) or "ambiguous"; of a true box "moved" (`right` is its
            right place) or "nothing"; or "undo" (of the verdict `undoes`).
        dataset_type: The split.
        input_id: The sample.
        truth: Number of the true box in it, None for the sample.
        box: The predicted box, None for a sample or a true box: (4,) x1, y1, x2, y2 in 2D, (7,) center, size,
            yaw in 3D, as recorded, to three decimals (`place`).
        label: The class that is right, for "relabel" and "missing"; for "moved" where it is another, too.
        right: The place that is right, for "moved": as `box`.
        seen: Where the person saw the true box that they corrected; what is applied later is held against it.
        given: The class that the person saw as the label; what is applied later is held against it.
        input_hash: Content that the person saw, where it was recorded.
        note: Free text.
        result_name: The result in which it was seen.
        author: Who; empty = MLD_AUTHOR, else the name of the account.
        at: When, UTC; set when it is appended.
        verdict_id: 16 hex digits; set when it is appended.
        undoes: `verdict_id` of the verdict taken back, for "undo".
    """

    kind: str
    dataset_type: str
    input_id: str
    truth: int | None = None
    label: int | None = None
    given: int | None = None
    input_hash: str | None = None
    note: str = ""
    result_name: str | None = None
    author: str = ""
    at: str = ""
    verdict_id: str = ""
    undoes: str | None = None
    box: tuple[float, ...] | None = None
    right: tuple[float, ...] | None = None
    seen: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in {*KINDS, *BOX_KINDS, *TRUE_BOX_KINDS, UNDO}:
            raise ValueError(
                f"verdict {self.kind!r}: expected one of {', '.join(KINDS)}; of a box without a truth "
                f"{', '.join(BOX_KINDS)}; of a true box {', '.join(TRUE_BOX_KINDS)}"
            )
        for name in ("box", "right", "seen"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(float(one) for one in value))
        self._fits()
        self._fits_true_box()

    def _fits(self) -> None:
        if self.kind != "moved" and (self.kind in {"relabel", "missing"}) != (self.label is not None):
            raise ValueError(
                f"verdict {self.kind!r} of {self.input_id!r} with label={self.label!r}: a label goes with "
                "'relabel' and 'missing', and with nothing else"
            )
        spoken = {*KINDS, UNDO, *(TRUE_BOX_KINDS if self.truth is not None else ())}
        if self.box is not None:
            spoken = {*BOX_KINDS, "ambiguous", UNDO}
        if self.kind not in spoken or (self.box is not None and self.truth is not None):
            raise ValueError(
                f"verdict {self.kind!r} of {self.input_id!r} with truth={self.truth!r}, box={self.box!r}: "
                f"of a predicted box without a truth {', '.join(BOX_KINDS)} or ambiguous can be said"
            )
        if self.label is not None and self.label < 0:
            raise ValueError(
                f"label {self.label} of {self.input_id!r}: expected a class number of at least 0"
            )
        if (self.kind == UNDO) != (self.undoes is not None):
            raise ValueError("'undo' names the verdict it takes back (undoes=...), and nothing else does")

    def _fits_true_box(self) -> None:
        if (self.kind == "moved") != (self.right is not None):
            raise ValueError(
                f"verdict {self.kind!r} of {self.input_id!r} with right={self.right!r}: the right place goes "
                "with 'moved', and with nothing else"
            )
        if self.right is not None and not _is_box(self.right):
            raise ValueError(f"right={list(self.right)}: expected x1 < x2, y1 < y2, or sizes above 0 in 3D")

    @property
    def subject(self) -> Subject:
        """What it is about."""
        return Subject(self.dataset_type, self.input_id, self.truth, self.box)

    @property
    def corrects_box(self) -> bool:
        """Whether it is about the place of a true box, or that there is none."""
        return self.truth is not None and self.kind in TRUE_BOX_KINDS

    @property
    def says(self) -> tuple[str, int | None, tuple[float, ...] | None]:
        """What two people agree or disagree in."""
        return self.kind, self.label, self.right


@dataclass(frozen=True)
class Standing:
    """What stands of one subject, when everybody was heard.

    Attributes:
        subject: What it is about.
        verdict: The verdict that stands: all agree, or most do; None in a conflict.
        heard: Each author's last word, oldest first.
    """

    subject: Subject
    verdict: Verdict | None
    heard: tuple[Verdict, ...]

    @property
    def conflict(self) -> bool:
        """Whether nobody has a majority: a third person's word settles it."""
        return self.verdict is None


def _is_box(box: tuple[float, ...]) -> bool:
    """Whether numbers are a 2D or 3D box with an inside."""
    if not all(math.isfinite(value) for value in box):
        return False
    if len(box) == 4:
        return box[0] < box[2] and box[1] < box[3]
    return len(box) == 7 and min(box[3:6]) > 0


def same_place(a: Sequence[float], b: Sequence[float]) -> bool:
    """Whether two boxes are one that was written down twice: within a pixel, or a centimetre and a hundredth.

    Example:
        >>> same_place([0, 0, 10, 10], [0.4, 0, 10, 9.8]), same_place([0, 0, 10, 10], [3, 0, 13, 10])
        (True, False)
        >>> same_place([1, 2, 0, 2, 4, 1.5, 3.14159], [1, 2, 0, 2, 4, 1.5, -3.14159])
        True
    """
    if len(a) != len(b):
        return False
    away = [abs(one - other) for one, other in zip(a, b, strict=True)]
    if len(a) == 7:
        away[6] = abs((a[6] - b[6] + math.pi) % (2 * math.pi) - math.pi)
    return max(away) <= (0.01 if len(a) == 7 else 1.0)


def default_author() -> str:
    """`MLD_AUTHOR`, else the name of the account."""
    named = os.environ.get("MLD_AUTHOR", "").strip()
    if named:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in containers
        return "unknown"


def signed(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Verdicts with their author, the time and an id each, to be kept."""
    now = utc_now()
    return [
        replace(one, author=one.author or default_author(), at=now, verdict_id=secrets.token_hex(8))
        for one in verdicts
    ]


def undoing(verdicts: Iterable[Verdict], author: str = "") -> list[Verdict]:
    """What takes verdicts back."""
    return [
        Verdict(
            UNDO,
            one.dataset_type,
            one.input_id,
            one.truth,
            author=author,
            undoes=one.verdict_id,
            box=one.box,
        )
        for one in verdicts
    ]


def place(box: Iterable[float]) -> tuple[float, ...]:
    """A box as verdicts name it: what two people mean who saw the same.

    >>> place([10.00004, 2, 3.5, 4])
    (10.0, 2.0, 3.5, 4.0)
    """
    return tuple(round(float(value), 3) for value in box)


def standing(verdicts: Iterable[Verdict]) -> dict[Subject, Standing]:
    """What stands of each subject: each author's last word that was not taken back, then the majority.

    Two people who differ are a conflict, which a third person's word settles.

    Example:
        >>> ann = Verdict("ok", "val", "1", author="ann", at="1", verdict_id="a")
        >>> bob = Verdict("relabel", "val", "1", label=2, author="bob", at="2", verdict_id="b")
        >>> cem = Verdict("relabel", "val", "1", label=2, author="cem", at="3", verdict_id="c")
        >>> [one.conflict for one in standing([ann, bob]).values()]
        [True]
        >>> [one.verdict.label for one in standing([ann, bob, cem]).values()]
        [2]
    """
    told = sorted(verdicts, key=lambda one: one.at)  # of one call: in the order in which they were given
    undone = {one.undoes for one in told if one.kind == UNDO}
    last: dict[Subject, dict[str, Verdict]] = {}
    for one in told:
        if one.kind != UNDO and one.verdict_id not in undone:
            by_author = last.setdefault(one.subject, {})
            by_author.pop(one.author, None)  # the later word goes to the end
            by_author[one.author] = one
    return {subject: _settled(subject, tuple(heard.values())) for subject, heard in last.items()}


def _settled(subject: Subject, heard: tuple[Verdict, ...]) -> Standing:
    says, votes = Counter(one.says for one in heard).most_common(1)[0]
    chosen = next(one for one in reversed(heard) if one.says == says) if 2 * votes > len(heard) else None
    return Standing(subject, chosen, heard)


def as_members(one: Verdict) -> dict[str, Any]:
    """The members that say something, as a line of a file has them."""
    return {name: value for name, value in asdict(one).items() if value not in (None, "")}


def of_members(data: Any) -> Verdict:
    """The verdict of what `as_members` gave; members of later releases are left out.

    Raises:
        TypeError, ValueError: It is none.
    """
    if not isinstance(data, dict):
        raise TypeError("expected an object")
    known = {item.name for item in fields(Verdict)}
    one = Verdict(**{name: value for name, value in data.items() if name in known})
    if not one.verdict_id:
        raise ValueError("it has no verdict_id")
    return one
