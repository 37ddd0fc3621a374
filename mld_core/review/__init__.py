"""Verdicts applied: from what people said of samples to a corrected data set.

`apply` gives the data set with its labels corrected (open `corrected` first); `suggest` makes verdicts of a
result's suspected labels, for a person who has looked at enough of them to trust the rest.
"""

from mld_core.review.corrected import Corrected, apply
from mld_core.review.suggestions import suggest

__all__ = ["Corrected", "apply", "suggest"]
