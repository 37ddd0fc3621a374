"""A small model, a batch and what the store holds, for the tests of the tracer called by hand."""

import torch
from torch import nn

from mld_core.records.format.layout import RunKey, Store
from mld_core.records.read.reader import select

K = 4
RUN = RunKey("net", "v1")


def net():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, K))


def batch(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.arange(n) % K, [f"s{i}" for i in range(n)]


def passes(**keywords):
    keywords.setdefault("n_epoch", None)
    return select(Store(), RUN, passes="all", **keywords)


def samples(**keywords):
    (one,) = passes(**keywords)
    return one.table("samples")
