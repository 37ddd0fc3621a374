"""One dataset, one model, the same weights: every framework leaves the same records. The core is neutral."""

import numpy as np
import pandas as pd
import pytest
import torch
from loop_parts import Indexed, Net
from loops_run import installed, loops, passes, table

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.timeout(600)]

N_TRAIN, N_VAL = 11, 7
KEYS = ["dataset_type", "n_epoch", "input_id"]


def expected() -> pd.DataFrame:
    model = Net()
    rows = []
    for split, size in (("train", N_TRAIN), ("val", N_VAL)):
        x = torch.stack([Indexed(size)[i]["x"] for i in range(size)])
        logits = model(x)["logits"].detach().numpy()
        rows += [(split, e, str(i), logits[i], x[i].numpy()) for e in (0, 1) for i in range(size)]
    return pd.DataFrame(rows, columns=[*KEYS, "logits", "features"])


@pytest.mark.parametrize("framework", installed())
@pytest.mark.parametrize("world", [1, 2])
def test_the_same_table(world: int, framework: str) -> None:
    root = loops(world)
    found = table(root, framework)
    found["dataset_type"] = found.dataset_type.astype(str)
    repeated = found.duplicated(KEYS)
    if world == 1:
        assert not repeated.any()
    else:
        # A sampler's padding counts once in val; in train it was trained twice and counts so.
        assert set(found[repeated].dataset_type) <= {"train"}
        assert repeated.groupby(found.n_epoch).sum().max() <= 1
    both = expected().merge(found[~repeated], on=KEYS, how="outer", indicator=True, suffixes=("", "_found"))
    assert (both._merge == "both").all(), both[both._merge != "both"][[*KEYS, "_merge"]]
    np.testing.assert_allclose(
        np.stack(list(both.logits_found)), np.stack(list(both.logits)), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        np.stack(list(both.features_found)), np.stack(list(both.features)), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("framework", installed())
@pytest.mark.parametrize("world", [1, 2])
def test_the_same_passes(world: int, framework: str) -> None:
    found = passes(loops(world), framework)
    assert sorted((s.key.dataset_type, s.key.n_epoch, s.key.pass_no) for s in found) == [
        ("train", 0, 0),
        ("train", 1, 0),
        ("val", 0, 0),
        ("val", 1, 0),
    ]
    for selection in found:
        assert selection.sealed
        assert not selection.missing_ranks
        samples = selection.table("samples").to_pandas()
        assert (samples["mode"] == ("train" if selection.key.dataset_type == "train" else "eval")).all()
        assert (samples.label == samples.input_id.astype(int) % 3).all()
        expected_loss = torch.nn.functional.cross_entropy(
            Net()(torch.stack([Indexed(11)[int(i)]["x"] for i in samples.input_id]))["logits"],
            torch.tensor(samples.label.to_numpy()),
            reduction="none",
        )
        np.testing.assert_allclose(samples.loss, expected_loss.detach().numpy(), rtol=1e-4, atol=1e-5)
