"""cleanlab: `cleanlab.npz` with `labels`, `pred_probs` and `input_id`, as its functions take them.

    arrays = numpy.load("cleanlab.npz")
    cleanlab.filter.find_label_issues(arrays["labels"], arrays["pred_probs"])

Samples without a label, or whose probabilities are not finite, are left out: cleanlab takes none. The
probabilities are the recorded model's own: out of sample, as cleanlab wants them, but for those of train.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mld_core.exchange.samples import Samples


def write_cleanlab(samples: Samples, class_names: list[str], folder: Path) -> None:
    """Write the file of one pass."""
    use = (samples.label >= 0) & np.isfinite(samples.probabilities).all(axis=1)
    np.savez_compressed(
        folder / "cleanlab.npz",
        labels=samples.label[use],
        pred_probs=samples.probabilities[use],
        input_id=np.array(samples.input_id, np.str_)[use],
        class_names=np.array(class_names, np.str_),
    )
