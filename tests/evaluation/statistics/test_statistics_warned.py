"""Filters of warnings survive fits in several threads, and no fit warns of another."""

import sys
import threading
import warnings

import numpy as np
import sklearn.utils.parallel
from sklearn.ensemble import HistGradientBoostingClassifier

from mld_core.evaluation.statistics.warned import filters_kept


def test_overlapping_jobs_leave_the_users_filters():
    """Two jobs as scikit-learn's: the one that began first ends first, so that neither puts them back."""
    inside, over = threading.Barrier(2), threading.Event()

    def job(first):
        with filters_kept():
            kept = warnings.catch_warnings()
            if first:
                kept.__enter__()
                inside.wait(10)
                inside.wait(10)
                kept.__exit__(None, None, None)
                over.set()
            else:
                inside.wait(10)
                kept.__enter__()
                warnings.resetwarnings()
                warnings.simplefilter("ignore")
                inside.wait(10)
                over.wait(10)
                kept.__exit__(None, None, None)
                warnings.resetwarnings()

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the user's own")
        before = list(warnings.filters)
        threads = [threading.Thread(target=job, args=(first,)) for first in (True, False)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(20)
        assert warnings.filters == before
        with filters_kept():
            warnings.resetwarnings()
            with filters_kept():  # as one fit after another that left nothing
                assert warnings.filters == before
        assert warnings.filters == before


def test_fits_in_threads_do_not_warn_of_one_another():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 60)), rng.integers(0, 2, 120)
    before = sys.getswitchinterval()

    def fits():
        for _ in range(20):
            with filters_kept():
                HistGradientBoostingClassifier(max_iter=1).fit(x, y)

    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("default", "the user's own")
        own = list(warnings.filters)
        threads = [threading.Thread(target=fits) for _ in range(6)]
        sys.setswitchinterval(5e-5)  # they take turns a hundred times as often as by themselves
        try:
            for one in threads:
                one.start()
            for one in threads:
                one.join()
        finally:
            sys.setswitchinterval(before)
        assert warnings.filters == own
    assert [str(one.message) for one in told] == []
    assert sklearn.utils.parallel.warnings is warnings
