"""A second walk over the training data, after the epoch, that leaves the training as it was.

It goes through a loader of our own: the user's data set, collate function and batch size, but in order,
sharded over ranks without padding, with a generator and workers of its own. While it runs, the modules it
calls are in evaluation mode and no gradient is recorded; afterwards every module's mode and the state of
every random generator (Python's, NumPy's, torch's on host and devices, and those the data set holds) are what
they were. Where the user's loader has worker processes so has ours, so that the data set object of this
process, which their next workers may copy, is not read.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from mld_core.tracing.batch.batches import takes_keywords
from mld_core.tracing.batch.taps import SequentialOrder
from mld_core.tracing.capture.detectors import DetectorCapture
from mld_core.tracing.guard import ConfigurationProblem
from mld_core.tracing.run.session import Session

_WORKERS: Final = 2
_DEPTH: Final = 5
_SHARDED: Final = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


class Walk:
    """One walk over this rank's share of the training data.

    Args:
        session: whose hooked model is walked with.
        loader: the user's loader, or what a framework made of it.
        indices: of the data set, this rank's.
    """

    def __init__(
        self, session: Session, model: nn.Module, loader: DataLoader[Any], indices: Sequence[int]
    ) -> None:
        self.session = session
        self.model = model
        self.loader = loader
        size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
        self._lists = [list(indices[i : i + size]) for i in range(0, len(indices), size)]

    def order(self) -> SequentialOrder:
        """Names the samples of each batch by their place in the data set."""
        return SequentialOrder(self._lists, self.loader.dataset)

    def batches(self) -> Iterator[Any]:
        """The batches, as the user's loader would collate them."""
        user = self.loader
        workers = min(user.num_workers, _WORKERS)
        own: DataLoader[Any] = DataLoader(
            user.dataset,
            batch_sampler=self._lists,
            collate_fn=user.collate_fn,
            num_workers=workers,
            worker_init_fn=user.worker_init_fn,
            multiprocessing_context=user.multiprocessing_context if workers else None,
            generator=torch.Generator().manual_seed(0),
        )
        yield from own

    def forward(self, batch: Any) -> Any:
        """Runs the model on a batch: as keywords where its keys are the arguments, else on its inputs."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        batch = moved(batch, device)
        own = self.session.options.input_fn is not None
        if not own and isinstance(batch, Mapping) and takes_keywords(self.model, batch):
            return self.model(**batch)
        inputs = moved(self.session.inputs_of(batch), device)
        if isinstance(inputs, tuple):
            inputs = list(inputs)
        return self.model(inputs)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Within it the model is in evaluation mode, without gradients; afterwards all is as before."""
        modes = [(module, module.training) for module in self.model.modules()]
        states = RandomStates((self.loader.dataset, self.loader.collate_fn))
        try:
            for module, _ in modes:
                module.training = False  # not .eval(): some frameworks' wrappers do more in it
            with torch.no_grad(), self._marked():
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            states.restore()

    def _marked(self) -> contextlib.AbstractContextManager[None]:
        capture = getattr(self.session, "capture", None)
        return capture.replaying() if isinstance(capture, DetectorCapture) else contextlib.nullcontext()


def plan(session: Session, loader: Any, fraction: float, world: tuple[int, int]) -> Walk:
    """The walk over this rank's share.

    Args:
        session: the run under way.
        loader: the training loader.
        fraction: of the data set, spread evenly; the same samples every time.
        world: (rank, world size).

    Raises:
        ConfigurationProblem: the data can not be walked sample by sample, or the model is sharded over ranks.
    """
    loader = getattr(loader, "base_dataloader", loader)
    loader = getattr(loader, "_dataloader", loader)
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ConfigurationProblem(
            f"replay_train needs a DataLoader over a map-style data set, got {type(loader).__name__} over "
            f"{type(getattr(loader, 'dataset', None)).__name__}; set replay_train=False."
        )
    if loader.batch_sampler is None:
        raise ConfigurationProblem(
            "replay_train needs a DataLoader that makes batches of single samples; this one has "
            "batch_size=None, its data set gives whole batches. Set replay_train=False."
        )
    capture = getattr(session, "capture", None)
    if capture is None:
        raise ConfigurationProblem("replay_train: no model is hooked")
    model: nn.Module = capture.model
    if is_sharded(model):
        raise ConfigurationProblem(
            "replay_train: the model's parameters are sharded over ranks (FSDP, DeepSpeed), so it can not be "
            "called on one rank; set replay_train=False."
        )
    indices = _indices(loader)
    count = max(1, round(fraction * len(indices)))
    if count < len(indices):
        indices = [indices[i] for i in np.linspace(0, len(indices) - 1, count).round().astype(int).tolist()]
    rank, size = world
    return Walk(session, model, loader, indices[rank::size])


def _indices(loader: DataLoader[Any]) -> Sequence[int]:
    """What is trained on: the whole data set, or the subset that a SubsetRandomSampler draws from."""
    sampler = loader.sampler
    if any(kind.__name__ == "SubsetRandomSampler" for kind in type(sampler).__mro__):
        return sorted({int(i) for i in getattr(sampler, "indices", ())})
    return range(len(loader.dataset))  # type: ignore[arg-type]


def is_sharded(model: nn.Module) -> bool:
    """Whether a forward of the model needs all ranks (FSDP, DeepSpeed)."""
    if any(kind.__name__ in _SHARDED for module in model.modules() for kind in type(module).__mro__):
        return True
    return any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters())


def moved(value: Any, device: torch.device) -> Any:
    """A batch with its tensors on `device`; what is not a tensor or a container stays as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(moved(item, device) for item in value)
    to = getattr(value, "to", None)
    return to(device) if callable(to) and not isinstance(value, nn.Module) else value


class RandomStates:
    """The state of every random generator in reach, to be restored.

    Args:
        roots: objects whose members may be generators of their own (data sets, transforms).
    """

    def __init__(self, roots: Any) -> None:
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 - the user's global generator
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        self._own = [(generator, _state_of(generator)) for generator in _generators(roots, 0, set())]

    def restore(self) -> None:
        """Sets every generator back."""
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        for generator, state in self._own:
            _set_state(generator, state)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _generators(value: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    """Generator objects among the members of `value`, and their members, a few levels deep."""
    if id(value) in seen or depth > _DEPTH:
        return
    seen.add(id(value))
    if isinstance(value, (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)):
        yield value
        return
    if isinstance(value, Mapping):
        members: Any = list(value.values())[:256]
    elif isinstance(value, (list, tuple)):
        members = value[:256]
    else:
        members = list(getattr(value, "__dict__", {}).values())
    for member in members:
        if not isinstance(member, (str, bytes, int, float, Tensor, np.ndarray, type(None), type)):
            yield from _generators(member, depth + 1, seen)
