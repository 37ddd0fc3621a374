"""The diagnoses of all tasks, for what shows results of any of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mld_core.evaluation.classification import diagnoses as classification
from mld_core.evaluation.codes.diagnosis import Diagnosis
from mld_core.evaluation.detection import diagnoses as detection
from mld_core.evaluation.detection3d import diagnoses as detection3d

_ALL: tuple[Diagnosis[Any], ...] = (
    *classification.DIAGNOSES,
    *detection.DIAGNOSES,
    *detection3d.DIAGNOSES,
)
BY_CODE: Mapping[str, Diagnosis[Any]] = {one.code: one for one in _ALL}
