"""The recorder's options: names and defaults of the public API, checked before training starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mld_core.tracing.guard import ConfigurationProblem

if TYPE_CHECKING:  # pyarrow is loaded by whoever makes a recorder
    from mld_core.records.format.schema import AdditionalField

_TASKS: Final = ("classification", "detection", "detection3d")
_FUNCTIONS: Final = ("id_fn", "input_fn", "label_fn", "image_fn", "fields_fn")
_POSITIVE: Final = ((int, float), "a positive number", lambda v: math.isfinite(v) and v > 0)


@dataclass(frozen=True)
class WrapperOptions:
    """The arguments of every wrapper (public API, section 7); no argument is required.

    Args:
        model_name: first half of the run's name; None: the class name of what is trained.
        version_name: second half; None: the next free `v<k>`, and a resumed training finds its own again.
        task: "classification", "detection" or "detection3d"; None: inferred. Anything else is said once and
            not recorded.
        model: the module that makes the logits, or the detector, where it can not be found or there are
            several.
        target_layers: alias -> module path of features to record; None: the input of the layer that makes the
            logits.
        n_class: number of classes; None: read from the model.
        class_names: their names.
        id_fn: batch -> list of ids; None: ids are looked for (docs/usage.md).
        input_fn: batch -> inputs; None: found in the batch.
        label_fn: batch -> labels or true boxes; None: found in the batch.
        image_fn: batch -> images kept as thumbnails for the report.
        fields_fn: batch -> dict of the additional columns.
        additional_fields: the user's own columns per sample, `{"name", "type", "default"?}` each.
        additional_label_fields: likewise, about the label.
        splits: those to record, such as ["val"]; None: all the framework runs.
        every_n_epochs: record every n-th epoch.
        replay_train: True or a fraction: the train split is recorded in a walk after each epoch.
        score_thresh: smallest score of a box that is recorded; None: the model's own.
        iou_thresh: overlap above which suppression drops a box; None: the model's own.
        max_detections: most boxes of one image or frame; None: the model's own.
        pc_range: x_min, y_min, z_min, x_max, y_max, z_max in metres, for a 3D model that does not tell.
        ground_truth_provider: asked, with `get(input_ids, dataset_type)`, for the truth of frames without.
        store: where records go; None: `MLD_HOME`, else `~/.mld`.
        queue_mb: memory bound of what waits for the disk, MiB.
        on_full: "block" waits up to 30 s, then drops and counts; "drop" at once.
        roll_mb: a part is written at this size, MiB;
        roll_seconds: or at this age: what a SIGKILL can lose.
        vector_dtype: "float16" or "float32", of logits and features.
        keep_vectors: epochs whose features are kept per split; None: all.
        input_hash: whether the content of each sample is hashed.
        force_table_recreate: forget what was recorded under these names.
        live: evaluate each pass beside the training when it is sealed; `MLD_LIVE=0` switches it off.
        log_to_trainer: hand those figures to the trainer's own loggers, each with the `mld/epoch` it is of.
        auto_sync: upload each pass when it is sealed; else all at the end of the run.
        api_endpoint: address of a team's service; None: `MLD_API_ENDPOINT`, else local records only.
        api_key: key for it; None: `MLD_API_KEY`.

    Raises:
        ConfigurationProblem: a value of the wrong type or outside its range; the message names value and fix.
    """

    model_name: str | None = None
    version_name: str | None = None
    _: KW_ONLY
    task: str | None = None
    model: Any = None
    target_layers: Mapping[str, str] | None = None
    n_class: int | None = None
    class_names: Sequence[str] | None = None
    id_fn: Callable[[Any], Any] | None = None
    input_fn: Callable[[Any], Any] | None = None
    label_fn: Callable[[Any], Any] | None = None
    image_fn: Callable[[Any], Any] | None = None
    fields_fn: Callable[[Any], Mapping[str, Any]] | None = None
    additional_fields: Sequence[Mapping[str, Any]] | None = None
    additional_label_fields: Sequence[Mapping[str, Any]] | None = None
    splits: Sequence[str] | None = None
    every_n_epochs: int = 1
    replay_train: bool | float = False
    score_thresh: float | None = None
    iou_thresh: float | None = None
    max_detections: int | None = None
    pc_range: Sequence[float] | None = None
    ground_truth_provider: Any = None
    store: Any = None
    queue_mb: float = 256
    on_full: str = "block"
    roll_mb: float = 64
    roll_seconds: float = 10
    vector_dtype: str = "float16"
    keep_vectors: int | None = 2
    input_hash: bool = True
    force_table_recreate: bool = False
    live: bool = True
    log_to_trainer: bool = False
    auto_sync: bool = False
    api_endpoint: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def less(self, *own: str) -> dict[str, Any]:
        """What `Recorder` takes of these arguments: all but a wrapper's own."""
        return {name: value for name, value in vars(self).items() if name not in own}

    def __post_init__(self) -> None:
        for name in ("model_name", "version_name", "api_endpoint", "api_key"):
            self._expect(name, (str,), "a non-empty string", ok=bool)
        self._expect("task", (str,), f"one of {_TASKS}", ok=lambda v: v in _TASKS)
        self._expect("target_layers", (Mapping,), "a mapping alias -> module path", ok=_all_strings)
        fewest = 2 if self.task == "classification" else 1  # a detector may know one class
        self._expect("n_class", (int,), f"an integer of at least {fewest}", ok=lambda v: v >= fewest)
        self._expect(
            "class_names", (list, tuple), "a list of strings", ok=lambda v: all(isinstance(x, str) for x in v)
        )
        for name in _FUNCTIONS:
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise ConfigurationProblem(f"{name}={getattr(self, name)!r} is not a function of the batch.")
        self._expect(
            "splits", (list, tuple, set, frozenset), "a list of split names such as ['train', 'val']"
        )
        self._expect("every_n_epochs", (int,), "an integer of at least 1", ok=lambda v: v >= 1)
        self._expect(
            "replay_train", (bool, int, float), "False, True or a fraction", ok=lambda v: 0 <= v <= 1
        )
        self._expect("max_detections", (int,), "an integer of at least 1", ok=lambda v: v >= 1)
        for name in ("score_thresh", "iou_thresh"):
            self._expect(name, (int, float), "a number from 0 to 1", ok=lambda v: 0 <= v <= 1)
        for name in ("queue_mb", "roll_mb", "roll_seconds"):
            self._expect(name, *_POSITIVE)
        self._expect("on_full", (str,), "'block' or 'drop'", ok=lambda v: v in {"block", "drop"})
        self._expect(
            "vector_dtype", (str,), "'float16' or 'float32'", ok=lambda v: v in {"float16", "float32"}
        )
        self._expect(
            "keep_vectors",
            (int, type(None)),
            "a number of epochs, or None to keep all",
            ok=lambda v: v is None or v >= 0,
        )
        for name in ("input_hash", "force_table_recreate", "live", "log_to_trainer", "auto_sync"):
            self._expect(name, (bool,), "True or False")
        if self.class_names is not None and self.n_class not in {None, len(self.class_names)}:
            raise ConfigurationProblem(
                f"n_class={self.n_class} but class_names has {len(self.class_names)} names; give as many "
                "names as classes, or leave n_class out."
            )
        self._check_service_and_fields()

    def _expect(
        self, name: str, types: tuple[type, ...], what: str, ok: Callable[[Any], bool] | None = None
    ) -> None:
        value = getattr(self, name)
        default = RecorderOptions.__dataclass_fields__[name].default
        if value is None and default is None:
            return
        wrong_type = not isinstance(value, types) or (isinstance(value, bool) and bool not in types)
        if wrong_type or (ok is not None and not ok(value)):
            raise ConfigurationProblem(f"{name}={value!r}: expected {what}.")

    def _check_service_and_fields(self) -> None:
        endpoint, key = self.credentials()
        if key and not endpoint:
            raise ConfigurationProblem(
                "An api_key (or MLD_API_KEY) is set but no api_endpoint (or MLD_API_ENDPOINT). Give the "
                "endpoint of the service, or remove the key to work with local records only."
            )
        try:
            self.sample_fields()
            self.label_fields()
        except (TypeError, ValueError) as error:
            raise ConfigurationProblem(str(error)) from error

    def credentials(self) -> tuple[str | None, str | None]:
        """(endpoint, key): an argument beats its environment variable, each on its own."""
        endpoint = self.api_endpoint or os.environ.get("MLD_API_ENDPOINT") or None
        return endpoint, self.api_key or os.environ.get("MLD_API_KEY") or None

    def sample_fields(self) -> tuple[AdditionalField, ...]:
        """The user's own columns per sample."""
        return _parsed(self.additional_fields, "additional_fields")

    def label_fields(self) -> tuple[AdditionalField, ...]:
        """The user's own columns per label."""
        return _parsed(self.additional_label_fields, "additional_label_fields")

    @property
    def known_n_class(self) -> int | None:
        """Classes, where the user said so."""
        return self.n_class if self.class_names is None else len(self.class_names)

    def records_split(self, split: str) -> bool:
        """Whether `splits` lets this split pass; "val" stands for "val/1" and "val/<name>" too."""
        return self.splits is None or split in self.splits or split.split("/", 1)[0] in self.splits

    def records_epoch(self, n_epoch: int | None) -> bool:
        """Whether `every_n_epochs` lets this epoch pass; epochs below 0 and unknown ones always do."""
        return n_epoch is None or n_epoch < 0 or n_epoch % self.every_n_epochs == 0


@dataclass(frozen=True)
class RecorderOptions(WrapperOptions):
    """The options of the recorder: those of every wrapper, and one more.

    Args:
        max_store_gb: bound of the store in GiB at the end of a run, kept by dropping old features.
    """

    max_store_gb: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect("max_store_gb", *_POSITIVE)


def _parsed(fields: Sequence[Mapping[str, Any]] | None, argument: str) -> tuple[AdditionalField, ...]:
    from mld_core.records.format.schema import parse_fields  # noqa: PLC0415 - see above

    return parse_fields(fields, argument=argument)


def _all_strings(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, str) for k, v in value.items())
