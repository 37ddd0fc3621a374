"""The Hugging Face Trainer's events, on real trainers: what is recorded, under which split, epoch, pass and id."""

import copy
import gc
import json
import logging
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch
from hf_parts import arguments, ids, rows, sealed, trainer, upto
from loop_parts import Indexed, Net
from torch import nn
from transformers import Trainer, TrainerCallback

from ml_debugger.huggingface import MLDebuggerCallback
from mld_core.records.format.layout import Store
from mld_core.tracing.guard import forget_told

pytestmark = pytest.mark.usefixtures("store")
resumes = pytest.mark.skipif(
    torch.torch_version.TorchVersion(torch.__version__) < "2.6",
    reason="transformers loads no checkpoint with PyTorch below 2.6",
)


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    forget_told()
    before = dict(os.environ)
    yield
    # transformers 4 leaves compilation and precision behind, and later trainers would take them up.
    for name in set(os.environ) - set(before):
        del os.environ[name]


def test_train_and_evaluate_with_accumulation(tmp_path: Path) -> None:
    trainer(tmp_path, val=5, num_train_epochs=2, gradient_accumulation_steps=2, eval_strategy="epoch").train()
    table = rows()
    for epoch in (0, 1):
        assert ids(table, "train", epoch) == upto(7), "every micro-batch once"
        assert ids(table, "val", epoch) == upto(5)
    assert (table.feature0 == table.input_id.astype(float)).all(), "an id belongs to another sample"
    assert (table.label == table.input_id.astype(int) % 3).all()
    assert set(table.id_source) == {"loader_index"}
    assert set(table[table.dataset_type == "train"]["mode"]) == {"train"}
    assert set(table[table.dataset_type == "val"]["mode"]) == {"eval"}
    train0 = table[(table.dataset_type == "train") & (table.n_epoch == 0)]
    assert dict(train0.groupby("batch_idx").global_step.first()) == {0: 0, 1: 0, 2: 1, 3: 1}
    assert all(sealed().values())


def test_logits_are_the_models_own(tmp_path: Path) -> None:
    model = Net()
    t = trainer(tmp_path, model=model, val=5, learning_rate=0.0)
    t.train()
    t.evaluate()
    x = torch.stack([Indexed(7)[i]["x"] for i in range(7)])
    expected = model.head(x).detach().numpy()
    for _, row in rows().iterrows():
        np.testing.assert_allclose(row.logits, expected[int(row.input_id)], rtol=1e-5, atol=1e-6)


def test_dict_of_datasets_and_evaluation_before_training(tmp_path: Path) -> None:
    val = {"near": Indexed(3), "far": Indexed(4, first=100)}
    trainer(tmp_path, val=val, eval_strategy="epoch", eval_on_start=True).train()
    table = rows()
    assert set(table.dataset_type) == {"train", "val/near", "val/far"}
    for epoch in (-1, 0):
        assert ids(table, "val/near", epoch) == upto(3)
        assert ids(table, "val/far", epoch) == upto(4)
    far = table[table.dataset_type == "val/far"]
    assert (far.feature0 == far.input_id.astype(float) + 100).all()


def test_several_evaluations_in_one_epoch_stay_apart(tmp_path: Path) -> None:
    trainer(tmp_path, val=3, num_train_epochs=2, eval_strategy="steps", eval_steps=1).train()
    table = rows()
    for epoch in (0, 1):
        for pass_no in range(4):
            assert ids(table, "val", epoch, pass_no) == upto(3)
    val = table[table.dataset_type == "val"]
    assert len(val) == 2 * 4 * 3
    # Each pass ran after another optimizer step, so its logits differ.
    first = val[(val.input_id == "2")].sort_values(["n_epoch", "pass_no"]).logits.map(tuple)
    assert first.nunique() == 8
    assert ids(table, "train", 0) == ids(table, "train", 1) == upto(7), "validation interrupts, not more"


def test_evaluate_and_predict_alone(tmp_path: Path) -> None:
    t = trainer(tmp_path, val=5, num_train_epochs=2)
    t.evaluate()
    t.train()
    t.evaluate()
    t.predict(Indexed(3))
    t.evaluate(Indexed(2), metric_key_prefix="test")
    v1 = rows("v1")
    assert ids(v1, "val", None) == upto(5), "a fresh process does not know what the weights are"
    assert ids(v1, "val", 1) == upto(5), "after the fit: the epoch trained last, not one past it"
    assert ids(v1, "predict", 1) == upto(3)
    assert ids(v1, "test", 1) == upto(2)
    assert all(sealed().values())


def test_a_second_training_is_another_run(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    t.train()
    t.train()
    assert ids(rows("v1"), "train") == ids(rows("v2"), "train") == upto(7)
    assert {run.version_name for run in Store().runs()} == {"v1", "v2"}


def test_splits_and_every_n_epochs(tmp_path: Path) -> None:
    t = trainer(
        tmp_path,
        MLDebuggerCallback(splits=["val"], every_n_epochs=2),
        val=3,
        num_train_epochs=3,
        eval_strategy="epoch",
    )
    t.train()
    t.predict(Indexed(3))
    assert set(sealed()) == {("val", 0, 0), ("val", 2, 0)}
    assert ids(rows(), "val", 2) == upto(3)


@resumes
@pytest.mark.parametrize("broken_at", [3, 6])
def test_resume(tmp_path: Path, broken_at: int) -> None:
    """Broken in the middle of epoch 0 or of epoch 1, resumed from the checkpoint before."""

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == broken_at:
                raise RuntimeError("said by the test")

    options = {"val": 3, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "steps"}
    options |= {"save_steps": 2 if broken_at == 3 else 4}
    broken = MLDebuggerCallback()
    with pytest.raises(RuntimeError, match="said by the test"):
        trainer(tmp_path, broken, Break(), **options).train()
    broken.finish()  # as at the end of the program
    trainer(tmp_path, **options).train(resume_from_checkpoint=True)

    assert [run.version_name for run in Store().runs()] == ["v1"]
    table = rows()
    for epoch in (0, 1):
        assert ids(table, "train", epoch) == upto(7), "each sample once, whichever process saw it"
        assert ids(table, "val", epoch) == upto(3)
    assert set(table.pass_no) == {0}
    assert (table.feature0 == table.input_id.astype(float)).all()
    assert all(sealed().values())
    steps = table[table.dataset_type == "train"].groupby("n_epoch").global_step.agg(["min", "max"])
    assert steps.to_numpy().tolist() == [[0, 3], [4, 7]]


@resumes
def test_resume_with_restored_callback_states(tmp_path: Path) -> None:
    """Stateful callbacks are replaced by new instances on resume; ours must not be."""
    options = {"num_train_epochs": 1, "save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, max_steps=2, **options).train()
    ours = MLDebuggerCallback()
    t = trainer(tmp_path, ours, restore_callback_states_from_checkpoint=True, **options)
    t.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert ours in t.callback_handler.callbacks
    assert ids(rows(), "train") == upto(7)


def test_a_smaller_batch_after_out_of_memory(tmp_path: Path) -> None:
    class Hungry(Net):
        calls = 0

        def forward(self, x, labels=None):
            self.calls += 1
            if self.training and len(x) > 2 and self.calls == 2:
                raise RuntimeError("CUDA out of memory. (said by the test)")
            return super().forward(x, labels)

    t = trainer(
        tmp_path, model=Hungry(), auto_find_batch_size=True, per_device_train_batch_size=4, eval_strategy="no"
    )
    t.train()
    table = rows(model="Hungry")
    assert t._train_batch_size < 4
    assert ids(table, "train") == upto(7), "rows of the failed try are not counted"
    assert sealed(model="Hungry") == {("train", 0, 0): True}


def test_load_best_model_at_end(tmp_path: Path) -> None:
    class Worse(TrainerCallback):
        """The second epoch ruins the model."""

        def on_epoch_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step:
                with torch.no_grad():
                    model.head.weight.mul_(-50.0)

    t = trainer(
        tmp_path,
        MLDebuggerCallback(),
        Worse(),
        val=5,
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    t.train()
    t.evaluate()
    val = rows(dataset_type="val")
    assert ids(val, "val", 0, 1) == upto(5), "the weights in the model are those of epoch 0 again"
    best = val[val.n_epoch == 0].groupby("input_id").logits.agg(lambda s: np.ptp(np.stack(list(s)), 0).max())
    assert best.max() < 1e-6


def test_model_init(tmp_path: Path) -> None:
    t = trainer(tmp_path, model_init=Net, val=3)
    t.train()
    t.evaluate()
    assert ids(rows(), "train") == upto(7)
    assert ids(rows(), "val") == upto(3)


def test_bf16(tmp_path: Path) -> None:
    trainer(tmp_path, bf16=True, bf16_full_eval=False, val=3, eval_strategy="epoch").train()
    table = rows()
    assert ids(table, "train") == upto(7)
    assert np.isfinite(np.stack(list(table.logits))).all()
    assert (table.feature0 == table.input_id.astype(float)).all()


def test_compiled_model_gives_the_same_records(tmp_path: Path) -> None:
    options = {"val": 5, "eval_strategy": "epoch", "eval_on_start": True, "num_train_epochs": 2}
    trainer(tmp_path, MLDebuggerCallback(model_name="plain", keep_vectors=9), **options).train()
    t = trainer(
        tmp_path,
        MLDebuggerCallback(model_name="compiled", keep_vectors=9),
        torch_compile=True,
        torch_compile_backend="eager",
        **options,
    )
    t.train()
    t.predict(Indexed(2))
    t.callback_handler.callbacks[-2].finish()
    plain, compiled = rows(model="plain"), rows(model="compiled")
    assert ids(compiled, "predict", 1) == upto(2)
    compiled = compiled[compiled.dataset_type != "predict"]
    keys = ["dataset_type", "n_epoch", "pass_no", "input_id"]
    both = plain.merge(compiled, on=keys, validate="one_to_one")
    assert len(both) == len(plain) == len(compiled)
    for column in ("logits", "features"):
        x, y = (np.stack(list(both[f"{column}_{side}"])) for side in "xy")
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)


def test_input_id_of_the_collator_never_reaches_forward(tmp_path: Path) -> None:
    class Named(Indexed):
        def __getitem__(self, index):
            return {**super().__getitem__(index), "input_id": f"name-{self.first + index}"}

    def collate(samples):
        batch = torch.utils.data.default_collate(
            [{k: v for k, v in s.items() if k != "input_id"} for s in samples]
        )
        return {**batch, "input_id": [s["input_id"] for s in samples]}

    t = trainer(
        tmp_path,
        train=Named(7),
        val=Named(3),
        data_collator=collate,
        remove_unused_columns=False,
        eval_strategy="epoch",
    )
    t.train()
    table = rows()
    assert set(table.id_source) == {"input_id"}
    assert set(table[table.dataset_type == "train"].input_id) == {f"name-{i}" for i in range(7)}
    assert (table.feature0 == table.input_id.str.removeprefix("name-").astype(float)).all()


def test_only_a_content_hash_is_told_once_with_the_way_out(tmp_path: Path, caplog) -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter([Indexed(6)[i] for i in range(6)])

    with caplog.at_level(logging.WARNING, "ml_debugger"):
        trainer(tmp_path, train=Stream(), max_steps=3, num_train_epochs=2).train()
    told = [r.getMessage() for r in caplog.records if "Sample ids come from" in r.getMessage()]
    assert len(told) == 1
    for word in ("content", "remove_unused_columns=False", "data_collator", "input_id"):
        assert word in told[0]
    table = rows()
    assert set(table.id_source) == {"content_hash"}
    assert table.input_id.nunique() == 6


def test_forwards_that_no_event_claims_leave_nothing(tmp_path: Path) -> None:
    class Generates(TrainerCallback):
        def _call(self, model):
            was = model.training
            model.eval()
            with torch.no_grad():
                model(torch.zeros(3, 4))
            model.train(was)

        def on_step_begin(self, args, state, control, model=None, **kwargs):
            self._call(model)

        on_step_end = on_log = on_epoch_end = on_evaluate = on_epoch_begin = on_step_begin

    class Twice(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = super().compute_loss(model, inputs, return_outputs)
            if model.training:
                model.eval()
                with torch.no_grad():
                    model(torch.zeros(2, 4))
                model.train()
            return loss

    t = Twice(
        model=Net(),
        args=arguments(tmp_path, eval_strategy="epoch", gradient_accumulation_steps=2),
        train_dataset=Indexed(7),
        eval_dataset=Indexed(3),
        callbacks=[MLDebuggerCallback(), Generates()],
    )
    t.train()
    table = rows()
    assert ids(table, "train") == upto(7)
    assert ids(table, "val") == upto(3)
    assert len(table) == 10
    assert (table.feature0 == table.input_id.astype(float)).all()
    assert all(sealed().values())


def test_deep_copied_models_do_not_record(tmp_path: Path) -> None:
    class Ema(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            copied = copy.deepcopy(model).eval()
            with torch.no_grad():
                copied(x=torch.full((2, 4), 99.0))

    trainer(tmp_path, MLDebuggerCallback(), Ema(), val=3, eval_strategy="epoch").train()
    table = rows()
    assert len(table) == 10
    assert table.feature0.max() < 7


def test_a_reused_output_buffer_does_not_alter_records(tmp_path: Path) -> None:
    class Reuses(Net):
        def forward(self, x, labels=None):
            out = super().forward(x, labels)
            if not self.training:
                self.buffer = getattr(self, "buffer", torch.empty(2, 3))
                out["logits"] = self.buffer[: len(x)].copy_(out["logits"])
            return out

    model = Reuses()
    t = trainer(tmp_path, model=model)
    t.evaluate(Indexed(6))
    x = torch.stack([Indexed(6)[i]["x"] for i in range(6)])
    expected = model.head(x).detach().numpy()
    for _, row in rows(model="Reuses").iterrows():
        np.testing.assert_allclose(row.logits, expected[int(row.input_id)], rtol=1e-5, atol=1e-6)


def test_errors_of_ours_never_stop_a_training(tmp_path: Path, caplog) -> None:
    def broken(batch):
        raise KeyError("said by the test")

    callback = MLDebuggerCallback(label_fn=broken, fields_fn=broken)
    with caplog.at_level(logging.WARNING, "ml_debugger"):
        result = trainer(tmp_path, callback, val=3, eval_strategy="epoch").train()
    assert result.global_step == 4
    assert sum("said by the test" in r.getMessage() for r in caplog.records) == 1


def test_a_store_that_cannot_be_written_never_stops_a_training(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("not a folder")
    callback = MLDebuggerCallback(store=str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, "ml_debugger"):
        assert trainer(tmp_path, callback, val=3, eval_strategy="epoch").train().global_step == 4
    assert any("file" in r.getMessage() for r in caplog.records)


def test_training_is_the_same_with_us_and_without(tmp_path: Path) -> None:
    class Noisy(Net):
        def __init__(self):
            super().__init__()
            self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(4)

        def forward(self, x, labels=None):
            return super().forward(self.drop(self.norm(x)), labels)

    results = []
    for callbacks in ([MLDebuggerCallback()], [TrainerCallback()]):
        t = trainer(
            tmp_path, *callbacks, model=Noisy(), train=8, val=5, num_train_epochs=2, eval_strategy="epoch"
        )
        t.train()
        results.append((t.model.state_dict(), torch.random.get_rng_state()))
    (with_us, rng_with), (without, rng_without) = results
    for name, tensor in without.items():
        assert torch.equal(tensor, with_us[name]), name
    assert torch.equal(rng_with, rng_without)


def test_nothing_piles_up(tmp_path: Path) -> None:
    counts = []

    ours = MLDebuggerCallback()

    class Counts(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step in {20, 320}:
                assert ours._recorder.session.flush(60)
                gc.collect()
                counts.append(sum(isinstance(o, torch.Tensor) for o in gc.get_objects()))

    trainer(tmp_path, ours, Counts(), train=640, max_steps=320).train()
    assert counts[1] - counts[0] < 30, counts


def test_pickles_before_and_after(tmp_path: Path) -> None:
    callback = MLDebuggerCallback(model_name="m")
    t = trainer(tmp_path, callback, val=3)
    t.evaluate()
    torch.save(t.model, tmp_path / "whole.pt")
    again = torch.load(tmp_path / "whole.pt", weights_only=False)
    with torch.no_grad():
        assert again(torch.zeros(2, 4))["logits"].shape == (2, 3)
    assert len(rows(model="m")) == 3
    recorder = pickle.loads(pickle.dumps(callback._recorder))
    assert not recorder.enabled


@resumes
@pytest.mark.parametrize("content", ["", "[]", '{"x": 1}'])
def test_resume_with_a_broken_run_file_trains_on(tmp_path: Path, content: str) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=2).train()
    (tmp_path / "mld_run.json").write_text(content)
    again = trainer(tmp_path, save_strategy="steps", save_steps=2)
    # What rank 0 reads for all ranks must not raise: the others wait for it.
    ours = next(c for c in again.callback_handler.callbacks if isinstance(c, MLDebuggerCallback))
    assert ours._read_saved() == {}
    again.train(resume_from_checkpoint=True)
    assert len(rows(version="v2"))


def test_run_file_holds_builtin_types(tmp_path: Path) -> None:
    trainer(tmp_path, save_strategy="steps", save_steps=2).train()
    saved = json.loads((tmp_path / "mld_run.json").read_text())
    assert set(saved) == {"0", "2", "4"}
    assert saved["2"]["last_epoch"] == 0
    assert saved["2"]["version_name"] == "v1"


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_models_of_the_library(tmp_path: Path, kind: str) -> None:
    """Image and text classification, and a collator that pads."""
    import transformers

    transformers.set_seed(0)
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            image_size=8, patch_size=4, num_channels=1, num_labels=3,
        )  # fmt: skip
        model = transformers.ViTForImageClassification(config)
        data = [{"pixel_values": torch.randn(1, 8, 8), "labels": i % 3} for i in range(6)]
        collator = None
    else:
        config = transformers.BertConfig(
            vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=16, num_labels=3,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config)
        data = [{"input_ids": list(range(1, 3 + i)), "labels": i % 3} for i in range(6)]

        def collator(samples):
            width = max(len(s["input_ids"]) for s in samples)
            padded = [s["input_ids"] + [0] * (width - len(s["input_ids"])) for s in samples]
            tokens = torch.tensor(padded)
            labels = torch.tensor([s["labels"] for s in samples])
            return {"input_ids": tokens, "attention_mask": (tokens > 0).long(), "labels": labels}

    t = trainer(
        tmp_path, model=model, train=data, val=data[:4], data_collator=collator, eval_strategy="epoch"
    )
    t.train()
    table = rows(model=type(model).__name__)
    assert ids(table, "train") == upto(6)
    assert ids(table, "val") == upto(4)
    assert (table.label == table.input_id.astype(int) % 3).all()
    assert table.logits.map(len).eq(3).all()
    assert table.features.map(len).eq(16).all()
    expected = t.predict(data[:4]).predictions
    last = table[table.dataset_type == "val"].sort_values("input_id")
    np.testing.assert_allclose(np.stack(list(last.logits)), expected, rtol=1e-4, atol=1e-5)
