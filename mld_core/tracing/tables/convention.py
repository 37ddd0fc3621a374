"""Are 3D boxes what they are taken for? Cars that are wider than long say no.

Weights and annotations made with one generation of a framework and used with another have w and l exchanged
and the yaw a quarter turn off: mAP looks right, the errors of size and heading are absurd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_VEHICLES: Final = ("car", "truck", "bus", "van", "vehicle", "trailer")
_NOT_VEHICLES: Final = ("construction",)
_ENOUGH: Final = 20
_SCORE: Final = 0.3
_RATIO: Final = 1.2


class ConventionProbe:
    """Collects vehicles of a pass until there are enough to judge; once judged it looks no further.

    Args:
        names: of the classes in label order, None if unknown (then boxes of a car's size are judged).
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self.vehicles = (
            None if names is None else np.array([k for k, name in enumerate(names) if _is_vehicle(name)])
        )
        self._sizes: dict[str, list[npt.NDArray[Any]]] = {"true": [], "predicted": []}
        self._judged: set[str] = set()

    def see(
        self, what: str, boxes: npt.NDArray[Any], labels: npt.NDArray[Any], scores: Any = None
    ) -> str | None:
        """Looks at the boxes of one frame.

        Args:
            what: "true" or "predicted".
            boxes: (N, 7) cx, cy, cz, w, l, h, yaw.
            labels: (N,).
            scores: (N,) of predictions; low ones are not judged.

        Returns:
            The warning, once, where vehicles come out wider than long.

        Examples:
            >>> boxes = np.array([[0, 0, 0, 4.2, 1.7, 1.5, 0]] * 20)
            >>> probe = ConventionProbe(["car"])
            >>> "wider than long" in probe.see("true", boxes, np.zeros(20, int))
            True
        """
        if what in self._judged or not len(boxes):
            return None
        keep = np.isfinite(boxes).all(axis=1)
        if scores is not None:
            keep &= np.asarray(scores) >= _SCORE
        if self.vehicles is not None:
            keep &= np.isin(labels, self.vehicles)
        else:
            longest, height = boxes[:, 3:5].max(axis=1), boxes[:, 5]
            keep &= (longest > 3) & (longest < 15) & (height > 1.2) & (height < 4.5)
        sizes = self._sizes[what]
        if keep.any():
            sizes.append(boxes[keep, 3:5])
        if sum(map(len, sizes)) < _ENOUGH:
            return None
        self._judged.add(what)
        width, length = np.median(np.concatenate(sizes), axis=0)
        sizes.clear()
        if width <= _RATIO * length:
            return None
        return (
            f"The {what} vehicles come out wider than long (median {width:.1f} m wide, {length:.1f} m long): "
            "the weights or annotations were made with another generation of the framework than the code "
            "that runs now (MMDetection3D 1.0 exchanged w and l and turned yaw). Sizes and headings are "
            "recorded as they came; use the code they were made with, or convert them."
        )


def _is_vehicle(name: str) -> bool:
    lower = name.lower()
    return any(word in lower for word in _VEHICLES) and not any(word in lower for word in _NOT_VEHICLES)
