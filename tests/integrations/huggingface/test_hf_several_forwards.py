"""A Trainer whose loss takes several forwards: rows hold what the batch's own forward gave."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from loop_parts import Indexed, Net  # noqa: E402
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

from ml_debugger.huggingface import MLDebuggerCallback  # noqa: E402
from ml_debugger.records import load  # noqa: E402
from mld_core.tracing.guard import forget_told  # noqa: E402

pytestmark = pytest.mark.usefixtures("store")


def _arguments(folder: Path, **more: Any) -> TrainingArguments:
    batches = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder / "out"), **batches, **quiet, **more)


class Consistent(Trainer):
    """A teacher's look at other samples first, the batch's own forward, and one more of others behind it."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        with torch.no_grad():
            model(x=inputs["x"] + 50)
        outputs = model(**inputs)
        loss = outputs["loss"] + 0.01 * model(x=inputs["x"] + 70)["logits"].square().mean()
        return (loss, outputs) if return_outputs else loss


def test_rows_are_of_the_batchs_own_forward(tmp_path: Path) -> None:
    model = Net()
    trainer = Consistent(
        model=model,
        args=_arguments(
            tmp_path, num_train_epochs=2, learning_rate=1e-9, eval_strategy="epoch", save_strategy="no"
        ),
        train_dataset=Indexed(8),
        eval_dataset=Indexed(4, 100),
        callbacks=[MLDebuggerCallback(model_name="net")],
    )
    trainer.train()
    for split, size, first in (("train", 8, 0), ("val", 4, 100)):
        ids = [int(one) for one in load("net", "v1", dataset_type=split).column("input_id").to_pylist()]
        vectors = load("net", "v1", "vectors", split)
        [feature] = [name for name in vectors.column_names if name.startswith("feature")]
        assert sorted(ids) == [i for i in range(size) for _ in range(2)]
        assert [int(one[0]) - first for one in vectors.column(feature).to_pylist()] == ids
        own = torch.stack([Indexed(1, first + i)[0]["x"] for i in ids])
        torch.testing.assert_close(
            torch.tensor(vectors.column("logits").to_pylist()), model.head(own).detach(), rtol=1e-3, atol=1e-3
        )


class Failing(Trainer):
    """An evaluation that fails behind its first forward."""

    fails = True

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        outputs = model(**inputs)
        if self.fails:
            raise ValueError("planted")
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


def test_nothing_is_left_of_an_evaluation_that_failed(tmp_path: Path) -> None:
    model = Net()
    trainer = Failing(
        model=model,
        args=_arguments(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True),
        eval_dataset=Indexed(4),
        callbacks=[MLDebuggerCallback(model_name="net")],
    )
    with pytest.raises(ValueError, match="planted"):
        trainer.evaluate()
    trainer.fails = False
    with torch.no_grad():
        model.head.weight.add_(5)
    trainer.evaluate()
    own = model.head(torch.stack([Indexed(4)[i]["x"] for i in range(4)])).detach()
    found = torch.tensor(load("net", "v1", "vectors", "val").column("logits").to_pylist())
    torch.testing.assert_close(found, own, rtol=1e-2, atol=1e-2)


class _Copies(Trainer):
    """Evaluates with copies of the batch's inputs, as `look` makes them."""

    def look(self, model: Any, x: Any) -> Any:
        raise NotImplementedError

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            logits = self.look(model, inputs["x"])
        return logits.sum(), logits, inputs["labels"]


class _Reversed(_Copies):
    def look(self, model: Any, x: Any) -> Any:
        return model(x=x.flip(0))["logits"].flip(0)


class _Twice(_Copies):
    def look(self, model: Any, x: Any) -> Any:
        logits = model(x=x.clone())["logits"]
        model(x=x + 70)
        return logits


class _Halves(_Copies):
    def look(self, model: Any, x: Any) -> Any:
        return torch.cat([model(x=part)["logits"] for part in x.split(1)])


class _EverySecond(_Copies):
    calls = 0

    def look(self, model: Any, x: Any) -> Any:
        self.calls += 1
        return model(x=x.clone())["logits"] if self.calls % 2 else torch.zeros(len(x), 3)


class _Unprepared(_Copies):
    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        with torch.no_grad():
            logits = model(inputs["x"].clone())["logits"]
        return logits.sum(), logits, inputs["labels"]


@pytest.mark.parametrize(
    ("kind", "known", "told"),
    [
        (_Reversed, [], "in another order"),
        (_Twice, [], "several times"),
        (_Halves, [], "several times"),
        (_EverySecond, [0, 1, 4, 5], ""),
        (_Unprepared, [0, 1, 2, 3, 4, 5], ""),
    ],
)
def test_an_evaluation_with_copies_has_right_rows_or_none(tmp_path: Path, caplog, kind, known, told) -> None:
    """The batch's labels and ids stand beside logits of the same samples, or the rows are left out, and that is told."""
    forget_told()
    model = Net()
    trainer = kind(
        model=model,
        args=_arguments(tmp_path),
        eval_dataset=Indexed(6),
        callbacks=[MLDebuggerCallback(model_name="net")],
    )
    trainer.evaluate()
    rows = load("net", "v1", dataset_type="val")
    assert [int(one) for one in rows.column("input_id").to_pylist()] == known
    assert rows.column("label").to_pylist() == [int(Indexed(6)[i]["labels"]) for i in known]
    if known:
        own = model(torch.stack([Indexed(6)[i]["x"] for i in known]))["logits"].detach()
        found = torch.tensor(load("net", "v1", "vectors", "val").column("logits").to_pylist())
        torch.testing.assert_close(found, own, rtol=1e-2, atol=1e-2)
    if told:
        assert sum(told in record.message for record in caplog.records) == 1


class _NotTheFirst(_EverySecond):
    calls = 1


def test_where_the_first_batch_was_not_asked_for_no_row_has_the_id_of_another(tmp_path: Path) -> None:
    trainer = _NotTheFirst(
        model=Net(),
        args=_arguments(tmp_path),
        eval_dataset=Indexed(6),
        callbacks=[MLDebuggerCallback(model_name="net")],
    )
    trainer.evaluate()
    rows = load("net", "v1", dataset_type="val")
    assert rows.column("label").to_pylist() == [2, 0]
    assert not {"0", "1"} & set(rows.column("input_id").to_pylist())


class _LooksOn(TrainerCallback):
    """A callback that asks the model for pictures of its own between the batches."""

    def on_prediction_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        with torch.no_grad():
            model(x=torch.ones(2, 4))


@pytest.mark.parametrize("kind", [_Copies, _Unprepared])
def test_a_forward_between_batches_of_an_evaluation_takes_nothing_from_them(tmp_path: Path, kind) -> None:
    class Own(kind):
        def look(self, model: Any, x: Any) -> Any:
            return model(x=x.clone())["logits"]

    model = Net()
    trainer = Own(
        model=model,
        args=_arguments(tmp_path),
        eval_dataset=Indexed(6),
        callbacks=[MLDebuggerCallback(model_name="net"), _LooksOn()],
    )
    trainer.evaluate()
    rows = load("net", "v1", dataset_type="val")
    assert [int(one) for one in rows.column("input_id").to_pylist()] == list(range(6))
    assert rows.column("label").to_pylist() == [int(Indexed(6)[i]["labels"]) for i in range(6)]
    own = model(torch.stack([Indexed(6)[i]["x"] for i in range(6)]))["logits"].detach()
    found = torch.tensor(load("net", "v1", "vectors", "val").column("logits").to_pylist())
    torch.testing.assert_close(found, own, rtol=1e-2, atol=1e-2)
