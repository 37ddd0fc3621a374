# ruff: noqa: C408 - configs are written this way
"""MMEngine: two lines in a config record every prediction of every sample. Real digits, on CPU.

    python examples/digits_mmengine.py examples/digits_mmengine_config.py

This is an ordinary config: `custom_imports` and `custom_hooks` are the two lines, and any other config is
recorded by adding them. `digits_mmengine.py` holds the model, the dataset and the metric, and trains as
OpenMMLab's `tools/train.py` does. Records go to `MLD_HOME` (default `~/.mld`).
"""

custom_imports = dict(imports=["ml_debugger.mmengine"], allow_failed_imports=False)
custom_hooks = [dict(type="MLDebuggerHook", priority="LOW", model_name="digits-mmengine")]

model = dict(type="DigitsClassifier")

train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(type="DigitsDataset", split="train"),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="DigitsDataset", split="val"),
)
train_cfg = dict(by_epoch=True, max_epochs=3)
val_cfg = dict()
val_evaluator = dict(type="DigitsAccuracy")
optim_wrapper = dict(optimizer=dict(type="Adam", lr=1e-3))

default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=1))
work_dir = "work_dirs/digits"
log_level = "WARNING"
randomness = dict(seed=0)
