"""A data set with its labels corrected by verdicts; nothing of it is copied or written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.store.verdict import Standing, Subject, Verdict
from mld_core.records.store.verdicts import Verdicts
from mld_core.review.boxes import Target, truths_of

LABEL_KEYS = ("label", "labels", "target", "targets", "gt_label", "y")
"""Members of a sample that is a mapping, in the order they are looked for."""


NO_BOXES = "a verdict on a box, and its sample has no target with boxes (give boxes_key=... where it has)"


class Corrected:
    """A map-style data set that gives each sample with the label that stands after review.

    Indices, length and ids are those of the data set inside, so that a training on it pairs with the one
    before.

    Attributes:
        dataset: The data set inside.
        labels: (dataset index id) -> verdict, for samples whose label is changed.
        boxes: (dataset index id) -> verdicts on its boxes.
        skipped: What was not applied, in words: conflicts, labels that are no longer what the reviewer saw.
    """

    def __init__(
        self,
        dataset: Any,
        verdicts: Iterable[Verdict],
        *,
        id_of: Callable[[Any, int], str] | None = None,
        label_key: str | int | None = None,
        skipped: Iterable[str] = (),
        boxes: Mapping[str, Sequence[Verdict]] | None = None,
        boxes_key: str | None = None,
    ) -> None:
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"a data set with __getitem__ and __len__ is needed, got {type(dataset).__name__}: correct "
                "the labels of an iterable one where it makes its samples (`mld review export` lists them)"
            )
        self.dataset = dataset
        self.labels = {one.input_id: one for one in verdicts if one.kind == "relabel"}
        self.boxes = {name: list(said) for name, said in (boxes or {}).items()}
        self.skipped = list(skipped)
        self._id_of = id_of or _index_id
        self._label_key = label_key
        self._boxes_key = boxes_key

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        sample = self.dataset[index]
        if not self.labels and not self.boxes:
            return sample
        name = self._id_of(self.dataset, index)
        verdict, drawn = self.labels.get(name), self.boxes.get(name)
        target = self._target(sample) if drawn else None
        if drawn and target is not None:
            sample = target.corrected(drawn)
        return sample if verdict is None else self._relabelled(sample, verdict)

    def __repr__(self) -> str:
        inside = type(self.dataset).__name__
        boxes = f", {sum(map(len, self.boxes.values()))} boxes" if self.boxes else ""
        return f"Corrected({inside}, {len(self.labels)} labels{boxes}, {len(self.skipped)} skipped)"

    def _target(self, sample: Any) -> Target | None:
        key = self._label_key if isinstance(self._label_key, str) else None
        return Target.of(sample, self._boxes_key, key)

    def mld_inner(self, index: Any) -> tuple[Any, Any]:
        """Where the recorder finds the sample's id: in the data set inside, at the same index."""
        return self.dataset, index

    def given(self, index: int) -> Any:
        """The label of a sample as the data set inside has it."""
        sample = self.dataset[index]
        return sample[self._place(sample)]

    def _relabelled(self, sample: Any, verdict: Verdict) -> Any:
        place = self._place(sample)
        given = sample[place]
        if verdict.given is not None and not _is_class(given, verdict.given):
            return sample  # apply() has named it among the skipped, or the data set was changed since
        return _with(sample, place, _like(given, verdict.label))

    def _place(self, sample: Any) -> Any:
        if self._label_key is not None:
            return self._label_key
        if isinstance(sample, Mapping):
            found = [key for key in LABEL_KEYS if key in sample]
            if len(found) == 1:
                return found[0]
            raise ValueError(
                f"a sample with the members {sorted(map(str, sample))}: which is the label? give "
                f"label_key=... (looked for {', '.join(LABEL_KEYS)})"
            )
        if isinstance(sample, list | tuple) and len(sample) >= 2:
            return 1
        raise ValueError(
            f"a sample of type {type(sample).__name__}: expected (input, label, ...) or a mapping; give "
            "label_key=... with the label's key or position"
        )


def apply(
    dataset: Any,
    model_name: str,
    version_name: str,
    dataset_type: str = "train",
    *,
    store: Store | str | Path | None = None,
    id_of: Callable[[Any, int], str] | None = None,
    label_key: str | int | None = None,
    boxes_key: str | None = None,
    check: bool = True,
) -> Corrected:
    """Give a data set with the labels and boxes that stand after review.

    Args:
        dataset: The data set of that split: map-style, samples `(input, label, ...)` or mappings; of
            detections `(input, target)` or mappings, the target with boxes and labels. Boxes as the recorder
            was given them, in 2D x1, y1, x2, y2.
        model_name: The run in which the verdicts were given.
        version_name: The same.
        dataset_type: The split.
        store: A store or its path; default `MLD_HOME`, else `~/.mld`.
        id_of: `(dataset, index) -> input_id`; None: the index in the innermost data set, which is how the
            recorder names samples without ids.
        label_key: Key or position of the label in a sample, or key of the labels in a target; None: found
            where that is unambiguous.
        boxes_key: Key of the boxes in a target; None: found where that is unambiguous.
        check: Read every sample once, to see that each verdict's sample is there and still has the label that
            the reviewer saw; what does not fit is left as it is and named in `skipped`.

    Returns:
        The corrected data set.

    Raises:
        LookupError: There are no verdicts for that split.
        TypeError: The data set is an iterable one.
        ValueError: Where the label stands in a sample is ambiguous.
    """
    opened = store if isinstance(store, Store) else Store(store)
    run = RunKey(model_name, version_name)
    found = Verdicts(opened, run).standing(dataset_type)
    if not found:
        raise LookupError(
            f"no verdicts for {model_name!r} {version_name!r} {dataset_type!r} in {opened.root}: review "
            "samples first (`mld review add`), or name the split that was reviewed (dataset_type=...)"
        )
    settled: list[Verdict] = []
    of_boxes: dict[str, list[Verdict]] = {}
    for name, one in found.items():
        if one.verdict is None:
            continue
        if name.truth is None and name.box is None:
            settled.append(one.verdict)
        elif one.verdict.corrects_box or one.verdict.kind in {"relabel", "missing"}:
            of_boxes.setdefault(name.input_id, []).append(one.verdict)
    skipped = [_in_conflict(one) for one in found.values() if one.conflict]
    corrected = Corrected(
        dataset,
        settled,
        id_of=id_of,
        label_key=label_key,
        skipped=skipped,
        boxes=of_boxes,
        boxes_key=boxes_key,
    )
    if check:
        _check(corrected, dataset_type)
        _check_boxes(corrected, dataset_type, truths_of(opened, run, dataset_type, of_boxes))
    return corrected


def _check(corrected: Corrected, dataset_type: str) -> None:
    """Take out what does not fit the data set, and say so."""
    wanted = dict(corrected.labels)
    for index in range(len(corrected)):
        if not wanted:
            break
        name = corrected._id_of(corrected.dataset, index)  # noqa: SLF001  the module's own class
        verdict = wanted.pop(name, None)
        if verdict is None or verdict.given is None:
            continue
        given = corrected.given(index)
        if not _is_class(given, verdict.given):
            del corrected.labels[name]
            already = ", which the verdict asks for" if _is_class(given, verdict.label) else ""
            corrected.skipped.append(
                f"{name}: the reviewer saw label {verdict.given}, the data set has {_plain(given)}{already}"
            )
    for name in wanted:
        del corrected.labels[name]
        corrected.skipped.append(f"{name}: no sample of {dataset_type!r} has this id")


def _check_boxes(corrected: Corrected, dataset_type: str, recorded: Mapping[str, Any]) -> None:
    """Take out what does not fit the boxes of the data set, and say so."""
    wanted = dict(corrected.boxes)
    fits, empty = False, []
    for index in range(len(corrected) if wanted else 0):
        name = corrected._id_of(corrected.dataset, index)  # noqa: SLF001  the module's own class
        said = wanted.pop(name, None)
        if said is None:
            continue
        target = corrected._target(corrected.dataset[index])  # noqa: SLF001
        kept = []
        for one in said:
            problem = NO_BOXES if target is None else target.unlike(one, recorded.get(name))
            if problem:
                corrected.skipped.append(f"{_name(one.subject)}: {problem}")
            else:
                kept.append(one)
        n = 0 if target is None else len(target.boxes)
        fits |= bool(kept) and n > 0
        empty += [name] if kept and n == 0 else []
        corrected.boxes[name] = kept
    for name in empty if not fits else ():
        corrected.skipped.append(f"{name}: no true box of the data set shows how it writes boxes")
        del corrected.boxes[name]
    for name in wanted:
        corrected.skipped.append(f"{name}: no sample of {dataset_type!r} has this id")
        del corrected.boxes[name]
    corrected.boxes = {name: said for name, said in corrected.boxes.items() if said}


def _in_conflict(one: Standing) -> str:
    said = ", ".join(
        f"{verdict.author}: {verdict.kind}{'' if verdict.label is None else f' {verdict.label}'}"
        for verdict in one.heard
    )
    return f"{_name(one.subject)}: in conflict ({said}); a third person's verdict settles it"


def _name(subject: Subject) -> str:
    where = subject.truth if subject.box is None else list(subject.box)
    return subject.input_id if where is None else f"{subject.input_id}#{where}"


def _index_id(dataset: Any, index: int) -> str:
    """The id the recorder gives a sample without one; without PyTorch there are no data sets to look into."""
    if find_spec("torch") is None:
        return str(index)
    from mld_core.tracing.batch.identity import base_id  # noqa: PLC0415  torch, only where a data set came in

    return base_id(dataset, index)


def _plain(label: Any) -> Any:
    return label.item() if hasattr(label, "item") and getattr(label, "size", 1) != 0 else label


def _is_class(label: Any, number: int | None) -> bool:
    """Whether a label (int, array or tensor of one element) is that class."""
    try:
        return int(label) == number
    except (TypeError, ValueError):
        return False


def _like(given: Any, label: int | None) -> Any:
    """The new class in the form of the old one: int, NumPy scalar, array or tensor."""
    assert label is not None
    if hasattr(given, "new_full"):
        return given.new_full(given.shape, label)
    if isinstance(given, np.ndarray):
        return np.full_like(given, label)
    return type(given)(label) if isinstance(given, int | float | np.generic) else label


def _with(sample: Any, place: Any, label: Any) -> Any:
    """The sample with another label, of the same type."""
    if isinstance(sample, Mapping):
        return {**sample, place: label}
    changed = list(sample)
    changed[place] = label
    if isinstance(sample, list):
        return changed
    return type(sample)(*changed) if hasattr(sample, "_fields") else tuple(changed)
