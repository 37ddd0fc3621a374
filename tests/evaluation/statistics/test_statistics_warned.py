"""Filters of warnings survive fits in several threads."""

import threading
import warnings

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
