"""From reviewed samples to a corrected data set: `apply(dataset, model_name, version_name, "train")`."""

from mld_core.records.store.verdict import Verdict
from mld_core.records.store.verdicts import Verdicts
from mld_core.review import Corrected, apply, suggest

__all__ = ["Corrected", "Verdict", "Verdicts", "apply", "suggest"]
