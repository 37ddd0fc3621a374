"""Folders of work that is killed: they are gone once anyone works again."""

import os
import subprocess
import sys
import tempfile

from mld_core.evaluation.engine.folders import work_folder

KILLED = """
import os, signal
from mld_core.evaluation.engine.folders import work_folder

with work_folder("mld-part-") as folder:
    (folder / "table").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_worker_left_is_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    subprocess.run([sys.executable, "-c", KILLED], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    (left,) = tmp_path.glob("mld-part-*")
    with work_folder("mld-part-") as young:  # nobody may have had the time to lock it
        assert left.exists()
    assert not young.exists()
    os.utime(left, (0, 0))
    with work_folder("mld-other-"):
        assert left.exists()
    with work_folder("mld-part-") as mine:
        assert [path.name for path in tmp_path.iterdir()] == [mine.name]


def test_the_folder_of_one_who_works_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with work_folder("mld-part-") as busy:
        os.utime(busy, (0, 0))
        with work_folder("mld-part-"):
            assert busy.exists()
