"""Ranks: no collective of ours after the set-up, uneven ranks, ranks that raise or are killed, four of them."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import once
import pytest
from folders import TRAININGS
from loop_parts import Sentences, Tokens, padded
from loops_run import FRAMEWORKS, all_on_four, collectives, installed, loops, passes, table

from ml_debugger.evaluator import Evaluator

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]


def test_no_collective_of_ours_after_the_set_up() -> None:
    """The only one is the broadcast of the run's names; the tracers called by hand make none."""
    frameworks = (*installed(), "uneven")
    root = loops(2)
    for rank in (0, 1):
        found = [
            c for c in collectives(root, rank) if c["framework"] not in {"unchanged", "tokens", "repeated"}
        ]
        ours = Counter((c["framework"], c["call"]) for c in found if c["ours"])
        assert ours == {(name, "broadcast_object_list"): 1 for name in frameworks if name != "plain"}
        functions = {c["ours"] for c in found if c["ours"]}
        assert functions <= {"_start", "trace"}, functions
        assert any(c["ours"] is None for c in found), "the frameworks' own were seen, so ours would be"


@pytest.mark.skipif("huggingface" not in installed(), reason="transformers is not installed")
def test_sentences_padded_to_the_longest_of_a_batch_count_once() -> None:
    """23 sentences on two ranks: the sampler fills up to 32, and a repeat has another padding."""
    root = loops(2)
    [val] = passes(root, "tokens")
    samples = val.table("samples").to_pandas()
    assert sorted(samples.input_id, key=int) == [str(i) for i in range(23)]
    assert set(samples.id_source) == {"loader_index"}
    assert val.report.duplicates_dropped > 0
    whole = padded([Sentences(23)[i] for i in range(23)])
    expected = Tokens()(**whole)["logits"].argmax(1).tolist()
    assert samples.set_index("input_id").prediction.loc[[str(i) for i in range(23)]].tolist() == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_is_the_same_with_us_and_without(rank: int) -> None:
    """Weights, gradients, generators, losses, runs of the model and compilations, to the bit."""
    root = loops(2)
    ways = json.loads((root / f"unchanged-{rank}.json").read_text())
    assert {"plain", "checkpointed", "compiled", "an exception in a step", "accumulating"} <= set(ways)
    assert {"lightning", "huggingface", "mmengine", "accelerate", "fabric"} & set(installed()) <= set(ways)
    for way, left in ways.items():
        assert left["ours"] == left["bare"], way
        rows = [one.table("samples").num_rows for one in passes(root, f"un {way}")]
        assert sum(rows) > 0, f"{way}: nothing was recorded, so the comparison shows nothing"


def test_ranks_with_different_numbers_of_batches_and_one_that_leaves_its_loop() -> None:
    root = loops(2)
    found = {s.key.n_epoch: s for s in passes(root, "uneven")}
    assert {epoch: s.sealed for epoch, s in found.items()} == {0: True, 1: True, 2: True}
    for epoch in (0, 2):
        samples = found[epoch].table("samples").to_pandas()
        assert sorted(samples.input_id, key=int) == [str(i) for i in range(9)]
        assert samples.groupby("rank_").size().to_dict() == {0: 5, 1: 4}
    cut = found[1].table("samples").to_pandas()
    assert cut.groupby("rank_").size().to_dict() == {0: 5, 1: 4}, "the batch in hand is counted"


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_four_ranks(every: bool) -> None:
    root = all_on_four() if every else loops(4)
    for framework in installed() if every else FRAMEWORKS[:1]:
        for selection in passes(root, framework):
            assert selection.sealed
            assert not selection.missing_ranks
            samples = selection.table("samples").to_pandas()
            size = 11 if selection.key.dataset_type == "train" else 7
            counts = Counter(samples.input_id)
            assert set(counts) == {str(i) for i in range(size)}, "the union of the ranks is the dataset"
            if selection.key.dataset_type == "val":
                assert set(counts.values()) == {1}
                assert selection.report.duplicates_dropped > 0, "the padding is reported"
        assert set(table(root, framework).rank_) == {0, 1, 2, 3}


def _end_early(root: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(
        [sys.executable, TRAININGS / "kill_script.py", root], env=environment, timeout=580, check=True
    )


@pytest.fixture(scope="module")
def ended() -> Path:
    """Two ranks of which one ends early, in every way it may."""
    return once.made("ended", _end_early)


@pytest.mark.parametrize("kind", ["alone", "raise", "ddp"])
def test_a_rank_that_ends_early(kind: str, ended: Path) -> None:
    root = ended / kind
    codes = json.loads((root / "codes.json").read_text())
    outputs = [(root / str(rank)).read_text() for rank in (0, 1)]
    assert codes[1] == (1 if kind == "raise" else -9), outputs[1]
    if kind != "ddp":
        assert codes[0] == 0, outputs[0]
        assert "went through" in outputs[0], "nothing of ours waits for the dead rank"
    else:
        assert codes[0] != 0, "averaging gradients with a dead rank fails, as without us"
        assert "went through" not in outputs[0]

    found = {s.key.n_epoch: s for s in passes(root, "killed")}
    assert found[0].sealed
    assert found[0].n_rows == 40
    cut = found[1]
    assert not cut.sealed
    assert cut.missing_ranks == ([0, 1] if kind == "ddp" else [1])
    rows = cut.table("samples").to_pandas()
    per_rank = rows.groupby("rank_").size().to_dict()
    assert per_rank[1] >= 4, "what rank 1 had written before its last roll"
    if kind == "raise":
        assert per_rank[1] == 12, "an exception leaves time to write all"
    if kind != "ddp":
        assert per_rank[0] == 20
        problems = Evaluator("killed", "v1", store=root / "store").request_evaluation(n_epoch=1).problems
        told = [problem["message"] for problem in problems]
        assert any("val (epoch 1)" in text and "rank 1 did not seal" in text for text in told), told
