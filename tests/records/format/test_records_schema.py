from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mld_core.records.format import schema, vectors

FINITE16 = st.floats(-65504, 65504, width=16)


@settings(deadline=None)
@given(hnp.arrays(np.float16, st.tuples(st.integers(0, 20), st.integers(1, 9)), elements=FINITE16))
def test_vectors_round_trip_without_a_copy(array):
    field = vectors.vector_field("f", array.shape[1], "float16", alias="layer4")
    column = vectors.from_numpy(array)
    assert column.type == field.type
    back = vectors.to_numpy(column, field)
    assert back.dtype == np.float16
    np.testing.assert_array_equal(back, array)
    if len(array):
        assert np.shares_memory(back, array)
    chunked = pa.chunked_array([column, column.slice(len(array) // 2)], type=column.type)
    np.testing.assert_array_equal(
        vectors.to_numpy(chunked, field), np.concatenate([array, array[len(array) // 2 :]])
    )
    listed = vectors.to_fixed_size_list(chunked, field)
    assert listed.type == pa.list_(pa.float32(), array.shape[1])
    assert len(listed) == len(chunked)


def test_null_vectors_are_nan_as_array_and_null_as_list():
    field = vectors.vector_field("f", 2)
    column = pa.array([np.float32([1, 2]).tobytes(), None], type=field.type)
    array = vectors.to_numpy(column, field)
    assert array[0].tolist() == [1, 2]
    assert np.isnan(array[1]).all()
    listed = vectors.to_fixed_size_list(column.slice(0), field)
    assert listed.to_pylist() == [[1, 2], None]
    assert vectors.to_fixed_size_list(column.slice(1), field).to_pylist() == [None]


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 5)), elements=st.floats(width=32)))
def test_overflow_and_nonfinite_are_seen_before_the_cast(array):
    cast, overflow = vectors.cast_vectors(array, "float16")
    beyond = np.isfinite(array) & (np.abs(array) > 65504)
    np.testing.assert_array_equal(overflow, beyond.any(axis=1))
    assert np.isfinite(cast[beyond]).all()
    np.testing.assert_array_equal(np.isnan(cast), np.isnan(array))
    np.testing.assert_array_equal(np.isinf(cast), np.isinf(array))
    np.testing.assert_array_equal(vectors.nonfinite_rows(array), ~np.isfinite(array).all(axis=1))
    same, none = vectors.cast_vectors(array, "float32")
    np.testing.assert_array_equal(same, array)
    assert not none.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vectors.vector_dtype("float64"), "expected 'float16' or 'float32'"),
        (lambda: vectors.vector_field("f", 0), "width 0; expected at least 1"),
        (lambda: vectors.from_numpy(np.zeros(3, np.float32)), r"shape \(N, D\)"),
        (lambda: vectors.from_numpy(np.zeros((3, 2))), "use cast_vectors"),
        (lambda: vectors.to_numpy(pa.array([1]), pa.field("x", pa.int64())), "no vector column"),
    ],
)
def test_wrong_vectors_are_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("int", pa.int64()),
        (int, pa.int64()),
        (float, pa.float64()),
        ("str", pa.string()),
        ("string", pa.string()),
        (bool, pa.bool_()),
        ("float32", pa.float32()),
        ("timestamp[us]", pa.timestamp("us")),
        (pa.list_(pa.int8()), pa.list_(pa.int8())),
    ],
)
def test_types_of_additional_fields(spec, expected):
    (field,) = schema.parse_fields([{"name": "mine", "type": spec}])
    assert field.type == expected
    assert schema.samples_schema("classification", [field]).field("mine").type == expected


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        ([{"name": "label", "type": "int"}], ValueError, "rename yours, for instance to 'user_label'"),
        ([{"name": "Unit", "type": "int"}], ValueError, "column of ml_debugger's own"),
        ([{"name": "n_epoch", "type": "int"}], ValueError, "column of ml_debugger's own"),
        ([{"name": "a", "type": "int"}, {"name": "A", "type": "int"}], ValueError, "stands there twice"),
        ([{"name": "a", "type": "tensor"}], ValueError, "Arrow type name such as"),
        ([{"name": "a", "type": "int", "default": "x"}], ValueError, "does not fit type int64"),
        ([{"name": "a"}], ValueError, "expected"),
        ([{"name": "a", "type": "int", "dflt": 1}], ValueError, "dflt"),
        ([{"name": "", "type": "int"}], ValueError, "expected"),
        (["a"], TypeError, "expected"),
        ({"name": "a", "type": "int"}, TypeError, "must be a list"),
    ],
)
def test_wrong_additional_fields_are_told_with_the_fix(specs, error, message):
    with pytest.raises(error, match=message):
        schema.parse_fields(specs)


def test_additional_columns_use_defaults_and_check_lengths():
    (field,) = schema.parse_fields([{"name": "weather", "type": "str", "default": "dry"}])
    assert schema.additional_column(field, None, 2).to_pylist() == ["dry", "dry"]
    assert schema.additional_column(field, ["wet", None], 2).to_pylist() == ["wet", "dry"]
    (number,) = schema.parse_fields([{"name": "n", "type": "int32"}])
    assert schema.additional_column(number, np.array([1, 2]), 2).type == pa.int32()
    with pytest.raises(ValueError, match="2 values for 3 rows"):
        schema.additional_column(number, [1, 2], 3)
    with pytest.raises(ValueError, match="declared as int32"):
        schema.additional_column(number, ["x"], 1)


@pytest.mark.parametrize("family", schema.FAMILIES)
@pytest.mark.parametrize("task", schema.TASKS)
def test_every_family_has_the_key_columns(family, task):
    names = schema.base_schema(family, task).names
    assert names[:3] == ["unit", "rank_", "input_id"]
    assert len(names) == len(set(names))


def test_wrong_names_in_schemas_are_told():
    with pytest.raises(ValueError, match="expected one of 'classification'"):
        schema.samples_schema("segmentation")
    with pytest.raises(ValueError, match="expected one of 'samples'"):
        schema.base_schema("boxes")
    with pytest.raises(ValueError, match="alias 'Logits'"):
        schema.vectors_schema("classification", 3, {"Logits": (4, "float16")})
    field = schema.AdditionalField("a", pa.int64())
    with pytest.raises(ValueError, match="keep it in one"):
        schema.samples_schema("classification", [field], [field])
    assert schema.detections_schema("detection3d").field("box").type == pa.list_(pa.float32(), 7)
    assert schema.truths_schema("detection").field("box").type == pa.list_(pa.float32(), 4)
