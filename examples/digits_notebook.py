# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which samples fail, and why
#
# Train a small network on scikit-learn's digits with one callback more, evaluate what it recorded, and look at the
# labels that are probably wrong. The labels of 40 validation digits are spoilt on purpose, so that there is
# something to find.
#
#     pip install -e ".[lightning,ui]" scikit-learn jupyter    # in a checkout

# %%
import lightning as L
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ml_debugger.evaluator import Evaluator
from ml_debugger.lightning import MLDebuggerCallback

L.seed_everything(0, verbose=False)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
labels = torch.tensor(labels)

rng = np.random.default_rng(0)
spoilt = rng.choice(np.arange(1000, len(labels)), 40, replace=False)
labels[spoilt] = (labels[spoilt] + torch.tensor(rng.integers(1, 10, len(spoilt)))) % 10

train = DataLoader(TensorDataset(images[:1000], labels[:1000]), batch_size=64, shuffle=True)
val = DataLoader(TensorDataset(images[1000:], labels[1000:]), batch_size=64)


# %% [markdown]
# ## Train
#
# The model is an ordinary one; the callback is the only line that is ours.


# %%
class Digits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 3e-3)


recorded = MLDebuggerCallback(model_name="digits", version_name="notebook", image_fn=lambda batch: batch[0])
trainer = L.Trainer(
    max_epochs=5, accelerator="cpu", callbacks=[recorded], logger=False, enable_checkpointing=False
)
trainer.fit(Digits(), train, val)

# %% [markdown]
# ## Evaluate
#
# A result shows its summary: metrics, categories, findings with what to do.

# %%
result = Evaluator("digits", "notebook").request_evaluation()
result

# %% [markdown]
# The labels that are probably wrong, the least likely first:

# %%
suspects = result.get_issues("val", code="C01", order_by="label_quality")
suspects[["input_id", "gt", "suggested_label", "label_quality", "confidence"]].head(10)

# %%
found = set(suspects["input_id"].astype(int)) & {int(index) - 1000 for index in spoilt}
print(f"{len(found)} of the 40 spoilt labels are among the {len(suspects)} that are called wrong")

# %% [markdown]
# All of it in pages, to sort, filter and judge: `result.show()` puts them into this notebook, `mld ui` into a browser,
# where verdicts are kept and labels corrected.
