"""Loaded by the interpreter of a program under test: notes what its losses are given, and nothing else.

Rows go to `MLD_SPY_OUT/<pid>.npz` when the process ends: `logits` (log-softmax of each row), `target` (-1 where it is
no class), `train` (whether gradients were on). With `MLD_SPY_TIMM` what timm's loss of soft targets was given goes to
`soft-<pid>.npz`: `logits` likewise, `target`. Of a detector's loss, which is given the class scores of every place of
every image, to `boxes-<pid>.npz`: `scores` of the evaluation's images one after another, and of how many each call was.
"""

import atexit
import os
from pathlib import Path

if os.environ.get("MLD_SPY_OUT"):
    import numpy as np
    import torch
    from torch.nn import functional

    rows, inside, boxes = [], [], []

    def _note(logits, target):
        flat = logits.detach().float().reshape(-1, logits.shape[-1])
        hard = torch.is_tensor(target) and not target.is_floating_point() and target.numel() == len(flat)
        labels = target.detach().reshape(-1).clone() if hard else torch.full((len(flat),), -1)
        rows.append((flat.log_softmax(-1).numpy().copy(), labels.numpy(), torch.is_grad_enabled()))

    def _spied(name):
        plain = getattr(functional, name)

        def loss(logits, target=None, *more, **named):
            if not inside and torch.is_tensor(logits) and logits.ndim == 2:
                _note(logits, target)
            inside.append(name)
            try:
                return plain(logits, *(() if target is None else (target,)), *more, **named)
            finally:
                inside.pop()

        setattr(functional, name, loss)

    # Losses with soft targets are written with log_softmax; a model that ends in one would be noted twice.
    for _name in ("cross_entropy", "nll_loss", *(["log_softmax"] if os.environ.get("MLD_SPY_SOFT") else [])):
        _spied(_name)

    def _of_boxes(plain):
        def loss(scores, *more, **named):
            if scores.ndim == 3 and not torch.is_grad_enabled():
                boxes.append(scores.detach().float().numpy().copy())
            return plain(scores, *more, **named)

        return loss

    functional.binary_cross_entropy_with_logits = _of_boxes(functional.binary_cross_entropy_with_logits)

    soft = []
    if os.environ.get("MLD_SPY_TIMM"):
        from timm.loss import SoftTargetCrossEntropy

        _plain = SoftTargetCrossEntropy.forward

        def _of_shares(self, x, target):
            scores = x.detach().float().log_softmax(-1)
            soft.append((scores.numpy().copy(), target.detach().float().numpy().copy()))
            return _plain(self, x, target)

        SoftTargetCrossEntropy.forward = _of_shares

    def _write():
        if soft:
            parts = [np.concatenate(part) for part in zip(*soft, strict=True)]
            out = Path(os.environ["MLD_SPY_OUT"]) / f"soft-{os.getpid()}.npz"
            np.savez(out, logits=parts[0], target=parts[1])
        if boxes:
            counts = [len(one) for one in boxes]
            out = Path(os.environ["MLD_SPY_OUT"]) / f"boxes-{os.getpid()}.npz"
            np.savez(out, scores=np.concatenate(boxes), counts=counts)
        if rows:
            parts = [np.concatenate(part) for part in list(zip(*rows, strict=True))[:2]]
            train = np.repeat([one[2] for one in rows], [len(one[1]) for one in rows])
            out = Path(os.environ["MLD_SPY_OUT"]) / f"{os.getpid()}.npz"
            np.savez(out, logits=parts[0], target=parts[1], train=train)

    atexit.register(_write)
