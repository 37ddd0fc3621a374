"""The reading plan under the Hugging Face Trainer: labels that the trainer takes out, tasks, padding."""

import warnings
from pathlib import Path

import pytest

pytest.importorskip("transformers")
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertLMHeadModel,
    Trainer,
    TrainingArguments,
)

from ml_debugger import records
from ml_debugger.huggingface import MLDebuggerCallback
from mld_core.tracing.guard import forget_told

pytestmark = pytest.mark.usefixtures("store")
N = 12
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(autouse=True)
def _alone():
    forget_told()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Texts(torch.utils.data.Dataset):
    def __init__(self, labels) -> None:
        self.ids = torch.randint(5, 3000, (N, 10), generator=torch.Generator().manual_seed(0))
        self.labels = labels

    def __len__(self) -> int:
        return N

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], **self.labels(i, self.ids[i])}


class Popping(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels")
        output = model(**inputs)
        loss = F.cross_entropy(output.logits, labels)
        return (loss, output) if return_outputs else loss


def train(tmp_path: Path, model, labels, kind=Trainer, **more) -> Trainer:
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        num_train_epochs=1,
        per_device_train_batch_size=4,
        report_to=[],
        use_cpu=True,
        eval_strategy="epoch",
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )
    data = Texts(labels)
    trainer = kind(
        model=model,
        args=arguments,
        train_dataset=data,
        eval_dataset=data,
        callbacks=[MLDebuggerCallback("net", "v")],
    )
    trainer.train()
    return trainer


def config(**more) -> BertConfig:
    return BertConfig(vocab_size=3000, max_position_embeddings=32, **SIZES, **more)


@pytest.mark.parametrize("how", ["popped", "label smoothing"])
def test_labels_that_the_trainer_takes_out_of_the_batch(tmp_path: Path, how: str) -> None:
    model = BertForSequenceClassification(config(num_labels=3))
    more = {"label_smoothing_factor": 0.1} if how == "label smoothing" else {}
    kind = Popping if how == "popped" else Trainer
    trainer = train(tmp_path, model, lambda i, _: {"labels": torch.tensor(i % 3)}, kind, **more)
    for split in ("train", "val"):
        rows = records.load("net", "v", dataset_type=split)
        by_id = dict(zip(rows["input_id"].to_pylist(), rows["label"].to_pylist(), strict=True))
        assert by_id == {str(i): i % 3 for i in range(N)}
    assert "backward" not in vars(trainer.accelerator)
    assert "_prepare_inputs" not in vars(trainer)


@pytest.mark.parametrize("kind", [Popping, Trainer])
def test_labels_of_an_evaluation_alone(tmp_path: Path, kind: type[Trainer]) -> None:
    """Its first batch is prepared before anything tells that an evaluation has begun."""
    model = BertForSequenceClassification(config(num_labels=3))
    trainer = train(tmp_path, model, lambda i, _: {"labels": torch.tensor(i % 3)}, kind)
    trainer.evaluate(metric_key_prefix="test")
    rows = records.load("net", "v", dataset_type="test")
    assert rows["label"].to_pylist() == [i % 3 for i in range(N)]
    assert "_prepare_inputs" not in vars(trainer)


class Failing(Popping):
    where = ""

    def compute_loss(self, model, inputs, **more):
        if self.where == ("train" if model.training else "val"):
            raise ZeroDivisionError
        return super().compute_loss(model, inputs, **more)


@pytest.mark.parametrize("where", ["train", "val"])
def test_a_trainer_is_as_it_was_after_an_exception(tmp_path: Path, where: str, monkeypatch) -> None:
    monkeypatch.setattr(Failing, "where", where)
    seen: list[Trainer] = []
    inner = Failing.train
    monkeypatch.setattr(Failing, "train", lambda self: (seen.append(self), inner(self)))
    with pytest.raises(ZeroDivisionError):
        train(
            tmp_path,
            BertForSequenceClassification(config(num_labels=3)),
            lambda i, _: {"labels": torch.tensor(i % 3)},
            Failing,
        )
    assert "_prepare_inputs" not in vars(seen[0])


def test_a_trainers_own_method_on_its_instance_stays(tmp_path: Path) -> None:
    calls: list[int] = []

    class Own(Trainer):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self._prepare_inputs = self.own

        def own(self, inputs):
            calls.append(1)
            return Trainer._prepare_inputs(self, inputs)

    model = BertForSequenceClassification(config(num_labels=3))
    trainer = train(tmp_path, model, lambda i, _: {"labels": torch.tensor(i % 3)}, Own)
    assert len(calls) == 5  # three batches of training, two of evaluation
    assert vars(trainer)["_prepare_inputs"] == trainer.own
    assert records.load("net", "v", dataset_type="val")["label"].to_pylist() == [i % 3 for i in range(N)]


class Twice(Trainer):
    """A second forward in the step, of which the loss knows nothing."""

    seen: list = []  # noqa: RUF012

    def compute_loss(self, model, inputs, return_outputs=False, **_):
        output = model(**inputs)
        if model.training:
            self.seen.append(output.logits.detach().clone())
            with torch.no_grad():
                model(**{**inputs, "input_ids": inputs["input_ids"].flip(1)})
        return (output.loss, output) if return_outputs else output.loss


def test_of_several_forwards_in_a_step_the_one_the_loss_used(tmp_path: Path) -> None:
    Twice.seen.clear()
    model = BertForSequenceClassification(config(num_labels=3))
    train(tmp_path, model, lambda i, _: {"labels": torch.tensor(i % 3)}, Twice)
    logits = records.load("net", "v", "vectors", dataset_type="train")["logits"].to_pylist()
    assert torch.equal(torch.tensor(logits), torch.cat(Twice.seen))


TASKS = {
    "regression": (
        lambda: BertForSequenceClassification(config(num_labels=1)),
        lambda i, _: {"labels": torch.tensor(i / 3)},
    ),
    "multi-label": (
        lambda: BertForSequenceClassification(
            config(num_labels=3, problem_type="multi_label_classification")
        ),
        lambda i, _: {"labels": torch.tensor([1.0, 1.0, 0.0])},
    ),
    "token classification": (
        lambda: BertForTokenClassification(config(num_labels=3)),
        lambda i, ids: {"labels": ids % 3},
    ),
    "language modelling": (
        lambda: BertLMHeadModel(config(is_decoder=True)),
        lambda i, ids: {"labels": ids},
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_tasks_that_are_not_recorded_are_named(tmp_path: Path, task: str, caplog) -> None:
    make, labels = TASKS[task]
    train(tmp_path, make(), labels)
    assert sum(f"looks like {task}" in r.message for r in caplog.records) == 1
    assert records.load("net", "v").num_rows == 0
    assert not any("Evaluate with" in r.message for r in caplog.records)


def test_two_answers_to_two_questions_are_refused(tmp_path: Path, caplog) -> None:
    model = BertForQuestionAnswering(config())
    train(
        tmp_path,
        model,
        lambda i, _: {"start_positions": torch.tensor(i % 3), "end_positions": torch.tensor(i % 3 + 1)},
    )
    assert sum("target_layers={'cls_logits'" in r.message for r in caplog.records) == 1
    assert records.load("net", "v").num_rows == 0


class Bag(torch.nn.Module):
    """Takes its tokens under any name, by position, or in a mapping, as sentence-transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(3000, 8), torch.nn.Linear(8, 3)

    def forward(self, tokens):
        tokens = tokens["input_ids"] if isinstance(tokens, dict) else tokens
        return self.head(self.embed(tokens).mean(1))


@pytest.mark.parametrize(
    "call",
    [
        lambda model, ids: model(ids),
        lambda model, ids: model(tokens=ids),
        lambda model, ids: model(ids.clone()),
        lambda model, ids: model({"input_ids": ids.clone()}),
    ],
    ids=["by position", "by another name", "a copy", "a copy in a mapping"],
)
def test_labels_of_an_evaluation_whose_model_is_not_given_them(tmp_path, call) -> None:
    """As with the losses of sentence-transformers' cross encoders, which tokenise and call the model themselves."""
    seen = {"train": [], "val": []}

    class Own(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            logits = call(model, inputs["input_ids"])
            pairs = zip(logits.detach().tolist(), inputs["labels"].tolist(), strict=True)
            seen["train" if model.training else "val"] += pairs
            loss = F.cross_entropy(logits, inputs["labels"])
            return (loss, {"logits": logits}) if return_outputs else loss

    train(
        tmp_path,
        Bag(),
        lambda i, _: {"labels": i % 3},
        Own,
        remove_unused_columns=False,
        label_names=["labels"],
    )
    for split, own in seen.items():
        rows = records.load("net", "v", dataset_type=split)
        logits = records.load("net", "v", table="vectors", dataset_type=split)["logits"].to_pylist()
        recorded = list(zip(logits, rows["label"].to_pylist(), strict=True))
        assert [label for _, label in recorded] == [label for _, label in own]
        torch.testing.assert_close(torch.tensor([z for z, _ in recorded]), torch.tensor([z for z, _ in own]))
    assert sorted(map(int, rows["input_id"].to_pylist())) == list(range(N))
