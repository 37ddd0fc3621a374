"""What is read of a large file does not stay in memory: pages of a memory map are given back."""

import sys
from pathlib import Path

import numpy as np
import pytest

from mld_core.evaluation.analysis.labels.quality import log_softmax_member
from mld_core.evaluation.engine.executor import Workers
from mld_core.evaluation.space.arrays import score_logits
from mld_core.evaluation.statistics.blocks import let_go, row_blocks, spans
from mld_core.evaluation.statistics.intervals import ranking_intervals

ROWS, CLASSES = 160_000, 100
MIB = 2**20


def resident_pages(path: Path) -> int:
    """Bytes of a file's pages that this process holds."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.fixture
def mapped(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("resident pages are read from /proc")
    path = tmp_path / "logits.bin"
    np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32).tofile(path)
    return path, np.memmap(path, np.float32, "r", shape=(ROWS, CLASSES))


def every_row(logits):
    member = log_softmax_member(logits)
    for span in spans(ROWS, 8_192):
        yield member(np.arange(span.start, span.stop))


WALKS = {
    "scores": score_logits,
    "labels": lambda logits, _: list(map(len, every_row(logits))),
    "vectors": lambda logits, _: list(map(len, row_blocks(logits, 8_192))),
    "intervals": lambda logits, workers: ranking_intervals(
        logits, np.zeros(ROWS, np.int64), np.arange(ROWS), workers
    ),
}


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_over_mapped_logits_holds_a_few_of_their_pages(mapped, walk):
    path, logits = mapped
    assert resident_pages(path) < MIB
    logits.sum()
    assert resident_pages(path) == logits.nbytes
    let_go(logits)
    with Workers(2) as workers:
        WALKS[walk](logits, workers)
    assert resident_pages(path) < 16 * MIB


def test_what_was_written_to_a_map_is_there_again(tmp_path):
    made = np.memmap(tmp_path / "one.bin", np.float32, "w+", shape=(1_000, 100))
    made[:] = 3
    let_go(made[5:])
    assert (made == 3).all()
    own = np.memmap(tmp_path / "one.bin", np.float32, "c", shape=(1_000, 100))
    own[:] = 4
    let_go(own)
    let_go(own[5:])
    assert (own == 4).all()
