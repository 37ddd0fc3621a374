"""The Arrow schemas of the five record families, and the user's own columns.

Every family carries `unit` (running number of the sample row in this rank's pass) and `rank_`; (rank_, unit)
names one sample row within an attempt, and rows of the other families refer to it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import pyarrow as pa

from mld_core.records.format.vectors import vector_field

FAMILIES = ("samples", "vectors", "detections", "truths", "media")
Task = Literal["classification", "detection", "detection3d"]
TASKS = ("classification", "detection", "detection3d")
KEY_FIELDS = (pa.field("unit", pa.int64(), nullable=False), pa.field("rank_", pa.int32(), nullable=False))
LOCATION_COLUMNS = ("dataset_type", "n_epoch", "pass_no")
INDEX_SOURCES = ("dataset_index", "loader_index")
LEFT_OUT = "rows left out to spare the training"
"""Among the counts of a pass's meta: training rows that were not recorded, as that took too much time."""
REPEATED = "sampler_repeat"
"""Of samples: a sampler repeated the sample so that all ranks get as many. Null and false: it did not."""
LOADER_PLACE = "loader_place"
"""Of samples whose ids are the user's, in evaluations on several ranks: the place that the loader drew."""
HASH_KIND = "hash_kind"
"""In run.json and the meta of a pass: how `input_hash` was made. Hashes compare within one kind only."""
FIRST_HASH_KIND = "multilinear"
"""How it was made before that was stored."""

_INT, _LONG, _FLOAT, _BOOL, _TEXT = pa.int32(), pa.int64(), pa.float32(), pa.bool_(), pa.string()
_DICT = pa.dictionary(pa.int32(), pa.string())
_DOUBLES = pa.list_(pa.float64())


def _fields(**types: pa.DataType) -> tuple[pa.Field, ...]:
    return tuple(pa.field(name, kind) for name, kind in types.items())


# In front of every family: the sample row within the attempt, and its id.
_KEYS = (*KEY_FIELDS, *_fields(input_id=_TEXT))
_SAMPLE_FIELDS = _fields(
    id_source=_DICT, input_hash=_TEXT, batch_idx=_INT, row=_INT, global_step=_LONG, mode=_DICT
) + _fields(**{REPEATED: _BOOL, LOADER_PLACE: _TEXT})
_CLASSIFICATION_FIELDS = _fields(
    label=_LONG, soft_label=pa.list_(_FLOAT), prediction=_LONG, confidence=_FLOAT, loss=_FLOAT
)
_DETECTION_FIELDS = (
    *_fields(n_detections=_INT, n_truths=_INT, labelled=_BOOL, score_thresh=_FLOAT, iou_thresh=_FLOAT),
    *_fields(max_detections=_INT, cap_hit=_BOOL, image_height=_INT, image_width=_INT, affine=_DOUBLES),
    *_fields(media_path=_TEXT),
)
_DETECTION3D_FIELDS = _fields(ego_pose=_DOUBLES, calibration=_TEXT)
_FLAG_FIELDS = _fields(nonfinite=_BOOL, overflow=_BOOL)
_VELOCITY = _fields(velocity=pa.list_(_FLOAT, 2))
_MISFIT = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
_PYTHON_TYPES: dict[str, pa.DataType] = {
    "int": _LONG,
    "float": pa.float64(),
    "str": _TEXT,
    "bool": _BOOL,
    "bytes": pa.binary(),
}


@dataclass(frozen=True)
class AdditionalField:
    """A column of the user's: name, Arrow type, and the value of rows for which none was given."""

    name: str
    type: pa.DataType
    default: Any = None


def check_family(family: str) -> None:
    """Raise ValueError where `family` is none of FAMILIES."""
    if family not in FAMILIES:
        raise ValueError(f"table={family!r}: expected one of {', '.join(map(repr, FAMILIES))}")


def _check_task(task: str) -> None:
    if task not in TASKS:
        raise ValueError(f"task={task!r}: expected one of {', '.join(map(repr, TASKS))}")


def reserved_names() -> frozenset[str]:
    """Column names of ours, in lower case (SQL engines do not tell case apart)."""
    schemas = (samples_schema("classification"), samples_schema("detection3d"))
    boxes = (detections_schema("detection3d"), truths_schema("detection3d"))
    ours = {item.name.lower() for schema in (*schemas, *boxes) for item in schema}
    return frozenset(ours | {*LOCATION_COLUMNS, "logits"})


def arrow_type(spec: Any) -> pa.DataType:
    """The Arrow type of a user's `"type"`: an Arrow name, a Python type or its name, or an Arrow type.

    Raises:
        ValueError: unknown.

    >>> arrow_type("float32"), arrow_type(int)
    (DataType(float), DataType(int64))
    """
    if isinstance(spec, pa.DataType):
        return spec
    name = spec.__name__ if isinstance(spec, type) else spec
    if isinstance(name, str):
        if name in _PYTHON_TYPES:
            return _PYTHON_TYPES[name]
        try:
            return pa.type_for_alias(name)
        except ValueError:
            pass
    raise ValueError(
        f"type {spec!r} is not known; expected an Arrow type name such as 'int64', 'float32', 'string', "
        f"'timestamp[us]', or one of the Python types {', '.join(_PYTHON_TYPES)}"
    )


def parse_fields(
    specs: Sequence[Mapping[str, Any]] | None, *, argument: str = "additional_fields"
) -> tuple[AdditionalField, ...]:
    """Check a user's list of `{"name", "type", "default"?}`.

    Raises:
        TypeError: not a list of dicts. ValueError: unknown or missing keys, an unknown type, a default that
        the type can not hold, a name that is taken.
    """
    if specs is None:
        return ()
    if isinstance(specs, str | Mapping) or not isinstance(specs, Sequence):
        raise TypeError(f'{argument} must be a list of {{"name": ..., "type": ...}}, got {specs!r}')
    reserved = reserved_names()
    seen: set[str] = set()
    fields = []
    for spec in specs:
        field = _parse_field(spec, argument)
        lower = field.name.lower()
        if lower in reserved:
            raise ValueError(
                f"{argument}: the name {field.name!r} is a column of ml_debugger's own; "
                f"rename yours, for instance to 'user_{field.name}'"
            )
        if lower in seen:
            raise ValueError(
                f"{argument}: {field.name!r} stands there twice (case does not count); rename one"
            )
        seen.add(lower)
        fields.append(field)
    return tuple(fields)


def _parse_field(spec: Any, argument: str) -> AdditionalField:
    if not isinstance(spec, Mapping):
        raise TypeError(f'{argument}: expected {{"name": ..., "type": ...}}, got {spec!r}')
    unknown = set(spec) - {"name", "type", "default"}
    name = spec.get("name")
    if unknown or "type" not in spec or not isinstance(name, str) or not name:
        expected = '{"name": str, "type": ..., "default": optional}'
        raise ValueError(f"{argument}: expected {expected}, got {dict(spec)!r}")
    kind = arrow_type(spec["type"])
    default = spec.get("default")
    try:
        pa.array([default], type=kind)
    except _MISFIT as error:
        raise ValueError(f"{argument}: default {default!r} of {name!r} does not fit type {kind}") from error
    return AdditionalField(name, kind, default)


def additional_column(field: AdditionalField, values: Any, rows: int) -> pa.Array:
    """The column of a user's field for one batch; None or a missing value becomes the default.

    Args:
        field: the field.
        values: one value per row (list, array, or anything `pyarrow.array` takes), or None.
        rows: rows of the batch.

    Raises:
        ValueError: another number of values than rows, or a value the type can not hold.
    """
    if values is None:
        return pa.repeat(pa.scalar(field.default, type=field.type), rows)
    if len(values) != rows:
        raise ValueError(
            f"field {field.name!r} has {len(values)} values for {rows} rows; give one per sample"
        )
    items = values.tolist() if hasattr(values, "tolist") else list(values)
    try:
        filled = [field.default if item is None else item for item in items]
        return pa.array(filled, type=field.type)
    except _MISFIT as error:
        raise ValueError(
            f"field {field.name!r} is declared as {field.type}, but a value does not fit: {error}; "
            f"declare another type or convert the values"
        ) from error


def _own(fields: Sequence[AdditionalField]) -> list[pa.Field]:
    return [pa.field(item.name, item.type) for item in fields]


def samples_schema(
    task: str = "classification",
    additional_fields: Sequence[AdditionalField] = (),
    additional_label_fields: Sequence[AdditionalField] = (),
) -> pa.Schema:
    """The schema of `samples`: one row per input unit.

    The user's label fields stand here for classification; for detection they belong to `truths`.

    Raises:
        ValueError: an unknown task, or a name in both lists.
    """
    _check_task(task)
    fields = [*_KEYS, *_SAMPLE_FIELDS]
    own = _own(additional_fields)
    if task == "classification":
        fields += _CLASSIFICATION_FIELDS
        own += _own(additional_label_fields)
        both = {item.name for item in additional_fields} & {item.name for item in additional_label_fields}
        if both:
            raise ValueError(
                f"{sorted(both)} stands in additional_fields and in additional_label_fields; keep it in one"
            )
    else:
        fields += _DETECTION_FIELDS
        if task == "detection3d":
            fields += _DETECTION3D_FIELDS
    return pa.schema([*fields, *_FLAG_FIELDS, *own])


def vectors_schema(task: str, n_logits: int | None, features: Mapping[str, tuple[int, str]]) -> pa.Schema:
    """The schema of `vectors`: one row per sample (classification) or per detection.

    Args:
        task: the task.
        n_logits: width of the logits (stored as float32), or None if there are none.
        features: alias -> (width, "float16" | "float32").

    Raises:
        ValueError: an unknown task, an alias that is a column of ours, a bad width or dtype.
    """
    _check_task(task)
    fields = list(_KEYS)
    if task != "classification":
        fields.append(pa.field("det_idx", pa.int32()))
    if n_logits is not None:
        fields.append(vector_field("logits", n_logits, "float32"))
    taken = {item.name.lower() for item in fields} | {"logits", *LOCATION_COLUMNS}
    for alias, (width, dtype) in features.items():
        if alias.lower() in taken:
            raise ValueError(
                f"target_layers: alias {alias!r} is a column of ml_debugger's own; choose another"
            )
        taken.add(alias.lower())
        fields.append(vector_field(alias, width, dtype))
    return pa.schema(fields)


def _box_fields(task: str) -> tuple[tuple[pa.Field, ...], tuple[pa.Field, ...]]:
    """The fields of a task's box, and those that stand at the end: 3D boxes move."""
    _check_task(task)
    return _fields(box=pa.list_(_FLOAT, 7 if task == "detection3d" else 4)), (
        _VELOCITY if task == "detection3d" else ()
    )


def detections_schema(task: str) -> pa.Schema:
    """The schema of `detections`: one row per predicted box.

    `box` is (4,) xyxy pixels of the original image, or (7,) x, y, z, w, l, h, yaw in metres and radians.
    """
    box, moving = _box_fields(task)
    found = _fields(det_idx=_INT, label=_LONG, score=_FLOAT, activation=_DICT, quality=_FLOAT)
    return pa.schema([*_KEYS, *found, *box, *_fields(source_index=_LONG), *moving])


AREA: Final = "area"  # of truths in 2D: what the data set says, in pixels of the original image; a user's too


ROTATED: Final = "rotated"
"""Of rotated 2D boxes, in detections and truths: cx, cy, w, h in pixels, the angle of w from x towards y."""

ROTATED_TYPE: Final = pa.list_(_FLOAT, 5)
IMAGE_BOX: Final = "image_box"
"""Of true 3D boxes whose data set has one: xyxy in pixels of the camera's image; null: not of this one."""

IMAGE_BOX_TYPE: Final = pa.list_(_FLOAT)
ATTRIBUTE: Final = "attribute"  # of 3D boxes, a number: in detections and truths where there are any


def truths_schema(task: str, additional_label_fields: Sequence[AdditionalField] = ()) -> pa.Schema:
    """The schema of `truths`: one row per true box, with the user's additional label fields."""
    box, moving = _box_fields(task)
    facts = _fields(
        ignore=_BOOL, crowd=_BOOL, difficulty=_INT, occlusion=_FLOAT, truncation=_FLOAT, n_points=_INT
    )
    own = _own(additional_label_fields)
    if task == "detection" and AREA not in {field.name for field in own}:  # the user's own counts
        facts += _fields(**{AREA: _FLOAT})
    return pa.schema([*_KEYS, *_fields(gt_idx=_INT, label=_LONG), *box, *facts, *moving, *own])


def media_schema() -> pa.Schema:
    """The schema of `media`: one row per sample of a pass that stores images.

    `png` is a thumbnail of at most 64 pixels on the longer side (256 for detection), null where there was no
    image.
    """
    return pa.schema([*_KEYS, *_fields(png=pa.binary())])


def base_schema(family: str, task: str = "classification") -> pa.Schema:
    """The schema of a family of which nothing was stored.

    Raises:
        ValueError: an unknown family or task.
    """
    check_family(family)
    boxes = "detection" if task == "classification" else task
    return {
        "samples": samples_schema(task),
        "vectors": vectors_schema(task, None, {}),
        "detections": detections_schema(boxes),
        "truths": truths_schema(boxes),
        "media": media_schema(),
    }[family]
