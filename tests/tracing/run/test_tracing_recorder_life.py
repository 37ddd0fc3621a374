"""The event protocol, end to end to the store: the untouched training, and a recorder's life."""

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from recorder_parts import K, data, net, rows, run_of, started, walk
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.format.vectors import to_numpy
from mld_core.records.store.merge import merge
from mld_core.tracing.run.recorder import Recorder

# -- the training is untouched -------------------------------------------------------------------------------


def train(tmp_path, traced):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(8, K),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())
    dataset = TensorDataset(torch.randn(24, 3, 8, 8), torch.arange(24) % K)
    loader = DataLoader(dataset, batch_size=6, shuffle=True)
    recorder = started(tmp_path, model) if traced else None
    grads = []
    for epoch in range(3):
        if traced:
            recorder.begin_pass("train", epoch, mode="train", loader=loader)
        for i, (x, y) in enumerate(loader):
            if traced:
                recorder.begin_batch((x, y))
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            grads.append([p.grad.clone() for p in model.parameters()])
            optimizer.step()
            if traced:
                recorder.record((x, y), None, batch_idx=i)
        if traced:
            recorder.end_pass()
    if traced:
        assert recorder.finish().rows_written == 72
    return model.state_dict(), grads, torch.random.get_rng_state()


def test_weights_gradients_and_generators_are_bit_identical(tmp_path):
    plain, traced = train(tmp_path, False), train(tmp_path, True)
    assert all(torch.equal(plain[0][k], traced[0][k]) for k in plain[0])
    assert all(
        torch.equal(a, b) for s, t in zip(plain[1], traced[1], strict=True) for a, b in zip(s, t, strict=True)
    )
    assert torch.equal(plain[2], traced[2])


def test_no_tensor_outlives_its_batch(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model)
    gc.collect()
    recorder.begin_pass("train", 0, mode="train")
    counts = []
    references = []
    for i in range(300):
        batch = (x.clone(), y.clone())
        recorder.begin_batch(batch)
        output = model(batch[0])
        references.append(weakref.ref(output))
        recorder.record(batch, output, batch_idx=i)
        del output, batch
        assert references[-1]() is None  # no hook, no graph holds it
        if i % 100 == 99:
            recorder.session.flush(30)
            gc.collect()
            counts.append(sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()))
    recorder.end_pass()
    recorder.finish()
    assert counts[2] <= counts[1] <= counts[0]  # what other tests left behind may go meanwhile


@pytest.mark.parametrize("mode", ["bf16", "autocast", "inference", "channels_last"])
def test_precisions_and_modes(tmp_path, mode):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K)
    ).eval()
    x, y = torch.randn(6, 3, 8, 8), torch.arange(6) % K
    if mode == "bf16":
        model, x = model.bfloat16(), x.bfloat16()
    if mode == "channels_last":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    recorder = started(tmp_path, model)
    with (
        torch.inference_mode(mode == "inference"),
        torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"),
    ):
        if mode == "inference":
            x = x.clone()
        logits = walk(recorder, model, [(x, y)])
    account = recorder.finish()
    assert (account.rows_written, account.rows_lost, recorder.guard.rows_lost) == (6, 0, 0)
    (one,) = rows(tmp_path, recorder)
    vectors = one.table("vectors")
    stored = to_numpy(vectors["logits"], vectors.schema.field("logits"))
    assert np.array_equal(stored, logits.float().numpy())
    assert one.table("samples")["input_hash"].null_count == 0
    assert np.isfinite(to_numpy(vectors["features"], vectors.schema.field("features"))).all()


# -- life ----------------------------------------------------------------------------------------------------


def test_pickles_before_and_after_start(tmp_path):
    model = net()
    x, y = data()
    fresh = pickle.loads(pickle.dumps(Recorder(store=str(tmp_path), model_name="m", splits=["val"])))
    assert fresh.options.splits == ["val"]
    recorder = started(tmp_path, model, model_name="m")
    walk(recorder, model, [(x, y)], n_epoch=0)
    twin = pickle.loads(pickle.dumps(recorder))
    assert twin.session is None
    recorder.finish()
    twin.start(model, twin.resolve_names(model), rank=0, world_size=1, framework="")
    walk(twin, model, [(x, y)], n_epoch=1)
    twin.finish()
    assert run_of(twin) == run_of(recorder)
    assert [s.key.n_epoch for s in rows(tmp_path, twin)] == [0, 1]


def test_start_again_after_finish_continues_the_run(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model)
    walk(recorder, model, [(x, y)], n_epoch=0)
    recorder.finish()
    recorder.start(model, recorder.resolve_names(model), rank=0, world_size=1, framework="")
    walk(recorder, model, [(x, y)], "test", 0)
    recorder.finish()
    assert [s.key.dataset_type for s in rows(tmp_path, recorder)] == ["test", "val"]


def test_wait_for_save_makes_the_epoch_readable(tmp_path):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model)
    walk(recorder, model, [(x, y)], n_epoch=3)
    assert recorder.wait_for_save(3, timeout=60)
    (one,) = rows(tmp_path, recorder)
    assert one.sealed
    recorder.finish()


def test_the_end_names_the_account_and_the_command(tmp_path, caplog):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model, model_name="my net", version_name="a")
    walk(recorder, model, [(x, y)])
    recorder.finish()
    assert "10 rows recorded to" in caplog.text
    assert "mld evaluate 'my net' a --store" in caplog.text
    other = started(tmp_path, model, rank=1, world_size=2, model_name="my net", version_name="a")
    caplog.clear()
    other.finish()
    assert "mld evaluate" not in caplog.text


def two_ranks(stores, model, batches, world_size=2):
    """Two ranks of a launch, recorded one after the other, each to its own store; rank 0 ends last."""
    zero = Recorder(store=str(stores[0]), model_name="net", version_name="a")
    names = zero.resolve_names(model)
    zero.start(model, names, rank=0, world_size=world_size, framework="")
    one = Recorder(store=str(stores[1]), model_name="net", version_name="a")
    one.start(model, {**names, "store": str(stores[1])}, rank=1, world_size=world_size, framework="")
    walk(one, model, batches[1])
    walk(zero, model, batches[0])
    return zero, one


def test_the_account_sums_the_ranks_it_sees_on_disk(tmp_path, caplog):
    model = net()
    x, y = data()
    zero, one = two_ranks([tmp_path] * 2, model, [[(x[:6], y[:6])], [(x[6:], y[6:])]])
    one.finish()
    assert "rows recorded" not in caplog.text
    zero.finish()
    assert "10 rows recorded by 2 ranks to" in caplog.text


def test_the_account_says_how_many_ranks_it_sees(tmp_path, caplog):
    model = net()
    x, y = data()
    zero, one = two_ranks([tmp_path] * 2, model, [[(x[:6], y[:6])], [(x[6:], y[6:])]], world_size=3)
    one.finish()
    zero.finish()
    assert "10 rows recorded by 2 of 3 ranks, as far as they have sealed, to" in caplog.text


def test_nodes_that_share_no_disk_are_told_the_fix_and_joined_by_merge(tmp_path, caplog):
    model = net()
    x, y = data()
    stores = [tmp_path / "node0", tmp_path / "node1"]
    zero, one = two_ranks(stores, model, [[(x[:6], y[:6])], [(x[6:], y[6:])]])
    for recorder in (one, zero):
        recorder.finish()
    told = [r.message for r in caplog.records if "the nodes share no disk" in r.message]
    assert len(told) == 1
    assert all(fix in told[0] for fix in ("MLD_HOME", "api_endpoint", "mld merge"))
    assert "6 rows recorded by this rank (0 of 2; no other has sealed a pass here)" in caplog.text
    [alone] = rows(stores[0], zero)
    assert alone.missing_ranks == [1]
    merge(stores, tmp_path / "all")
    [both] = rows(tmp_path / "all", zero)
    assert both.sealed
    assert both.n_rows == 10


@pytest.mark.parametrize("where", ["the same folder", "an endpoint", "another rank of the node"])
def test_nothing_is_said_of_nodes(where, tmp_path, caplog, monkeypatch):
    model = net()
    if where == "an endpoint":
        monkeypatch.setenv("MLD_API_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("MLD_UPLOAD_LINGER", "1")
    if where == "another rank of the node":
        monkeypatch.setenv("LOCAL_RANK", "1")
    stores = [tmp_path / "a", tmp_path / ("a" if where == "the same folder" else "b")]
    for recorder in two_ranks(stores, model, [[], []]):
        recorder.finish()
    assert "share no disk" not in caplog.text


def test_events_before_start_and_after_finish_do_nothing(tmp_path):
    model = net()
    x, y = data()
    recorder = Recorder(store=str(tmp_path))
    recorder.begin_batch()
    recorder.record((x, y), None, batch_idx=0)
    recorder.end_pass()
    assert recorder.wait_for_save(0)
    assert recorder.finish().rows_put == 0
    assert recorder.state() == {}
    assert not recorder.enabled
    walk(recorder, model, [(x, y)])
    assert list(tmp_path.iterdir()) == []


def test_the_feature_layer_of_a_run_is_kept_on_a_resume(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, K), nn.Linear(6, K)
            self.mean = True

        def forward(self, x):
            first, second = (self.a(x), self.b(x)) if self.mean else (self.b(x), self.a(x))
            return first + second

    x, y = data()
    for mean in (True, False):
        model = Two()
        model.mean = mean
        recorder = started(tmp_path, model, model_name="m", version_name="a")
        walk(recorder, model, [(x, y)], n_epoch=int(mean))
        recorder.finish()
        assert recorder.failed_to_start is False
        assert Store(tmp_path).run_info(RunKey("m", "a"))["features"]["features"]["layer"] == "b"


def test_old_features_go_by_epochs_and_by_size(tmp_path, caplog):
    model = net()
    x, y = data()
    recorder = started(tmp_path, model, keep_vectors=1)
    for epoch in range(3):
        walk(recorder, model, [(x, y)], n_epoch=epoch)
        recorder.wait_for_save(epoch)
    recorder.finish()
    names = [s.table("vectors").schema.names for s in rows(tmp_path, recorder)]
    assert ["features" in n for n in names] == [False, False, True]
    assert all("logits" in n for n in names)
    small = started(tmp_path, model, keep_vectors=None, max_store_gb=1e-9)
    for epoch in range(2):
        walk(small, model, [(x, y)], n_epoch=epoch)
    small.finish()
    assert "max_store_gb" in caplog.text
    names = [s.table("vectors").schema.names for s in rows(tmp_path, small)]
    assert ["features" in n for n in names] == [False, True]
