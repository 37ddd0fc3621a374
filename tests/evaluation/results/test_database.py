"""Databases stay for the next who asks: nobody sees what is another's, and nothing is left behind."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mld_core.evaluation.results.database import connected, database


@pytest.fixture
def tables(tmp_path):
    made = [tmp_path / f"it's {place}.parquet" for place in range(4)]
    for place, path in enumerate(made):
        pq.write_table(pa.table({"place": [place] * (place + 1)}), path)
    return made


def test_who_asks_at_the_same_time_sees_his_own_tables_alone(tables, tmp_path):
    together = Barrier(len(tables))

    def seen(path):
        with database(tmp_path / ".spill", numbered=True, units=[path]) as connection:
            connection.execute("CREATE TEMP TABLE picked AS SELECT * FROM units")
            connection.register("given", pq.read_table(path))
            together.wait(60)
            rows = [
                connection.execute(f"SELECT place FROM {name}").fetchall() for name in ("picked", "given")
            ]
            together.wait(60)
            return rows

    with ThreadPoolExecutor(len(tables)) as pool:
        found = list(pool.map(seen, tables))
    assert found == [[[(place,)] * (place + 1)] * 2 for place in range(len(tables))]


def test_what_one_made_is_gone_for_the_next(tables, tmp_path):
    with database(tmp_path / ".spill", units=tables[:1]) as connection:
        connection.execute("CREATE TEMP TABLE picked AS SELECT * FROM units")
    with database(tmp_path / ".spill", others=tables[:1]) as connection:
        for name in ("units", "picked"):
            with pytest.raises(duckdb.CatalogException):
                connection.execute(f"SELECT * FROM {name}")
    assert not (tmp_path / ".spill").exists()


def test_a_file_that_is_made_anew_is_read_anew(tables, tmp_path):
    for rows in ([1, 2, 3], [7, 8, 9]):
        stamp = tables[0].stat()
        pq.write_table(pa.table({"place": rows}), tables[0])
        os.utime(tables[0], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        with database(tmp_path / ".spill", units=tables[:1]) as connection:
            assert connection.execute("SELECT place FROM units").fetchall() == [(row,) for row in rows]


def test_the_folder_of_a_join_that_spilled_is_removed(tmp_path):
    spill = tmp_path / ".spill"
    with database(spill) as connection:
        connection.execute("SET memory_limit = '40MB'")
        connection.execute("SET threads = 1")
        connection.execute(
            "CREATE TEMP TABLE large AS SELECT hash(range) AS a, range::VARCHAR AS b FROM range(3_000_000)"
        )
        assert spill.exists()
    assert not spill.exists()
    with database(spill) as connection:
        assert connection.execute("SELECT current_setting('memory_limit')").fetchall() != [("38.1 MiB",)]


FORKS = """
import os, sys
from mld_core.evaluation.results.database import connected

def total():
    with connected() as connection:
        return connection.execute("SELECT sum(range) FROM range(1000000)").fetchall()[0][0]

assert total() == 499999500000
child = os.fork()
if child == 0:
    sys.exit()  # DuckDB 1.1 makes no database in a fork, whoever asks
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert total() == 499999500000
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_fork_of_the_process_ends_as_it_would_without_them():
    with connected() as connection:
        connection.execute("SELECT 1")
    subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=120)
