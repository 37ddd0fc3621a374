"""The content's hash of one batch, and who makes it: the training thread, a thread of its own, the writer's.

What is small is hashed where it stands: no reference to the user's batch is kept, so that nobody can write to
it before. Large batches, and those whose ids do not need the hash, go to `HashThread`, which holds two and
hashes while the step after them runs backward: hashing keeps the interpreter's lock, which nobody needs then.
"""

from __future__ import annotations

import os
import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch

from mld_core.tracing.batch import hashing_host
from mld_core.tracing.batch.batches import tensors_in
from mld_core.tracing.batch.hashing import input_hash_of
from mld_core.tracing.batch.hashing_host import INLINE_BYTES
from mld_core.tracing.batch.hashing_numpy import KIND

CHANGED: Final = "inputs changed in place before they were hashed"
UNREADABLE: Final = "inputs that could not be read for their hash"
LATE: Final = "inputs not hashed: the thread that hashes was late"
_HELD: Final = 2  # batches
_GLANCE: Final = 61  # numbers of a batch: odd, so that they stand at other places in each row
_PATIENCE_S: Final = 60.0
_END_S: Final = 10.0
_HELD_BYTES: Final = 16 << 20  # of moved batches; two are held whatever they weigh


class Fingerprint:
    """The hash of a batch's inputs, and until it is made the inputs, with their tensors' in-place counters.

    Args:
        inputs: as `mld_core.tracing.batch.labels.find_inputs` gave them.
        n: its units, None where only the writer thread will know.
        divided: makes of (inputs, n) one entry per unit wherever they can be divided.

    Attributes:
        on_host: no tensor of the inputs lies on a device.
        kind: how it is made; hashes compare within one kind.
        missing: why there is none, as it is counted; "" while there may be one.
        aside: another thread is to make it, before the writer's reads it.
    """

    def __init__(self, inputs: Any, n: int | None, divided: Callable[[Any, int], Any] | None = None) -> None:
        if type(inputs) is torch.Tensor and inputs.layout == torch.strided:
            tensors, self.nbytes = [inputs], inputs.nbytes
        else:
            tensors, self.nbytes = tensors_in(inputs), weight(inputs)
        self.n = n
        self.on_host = True
        # torch has no public name for the in-place counter, and inference tensors have none
        self._versions: list[tuple[torch.Tensor, int]] = []
        for tensor in tensors:
            self.on_host = self.on_host and tensor.is_cpu
            version = _version(tensor)
            if version is not None:
                self._versions.append((tensor, version))
        self.kind = hashing_host.KIND if self.on_host else KIND
        self.missing = ""
        self.aside = False
        self._tensors = tensors
        self._glance: list[tuple[torch.Tensor, bytes]] = []
        self._inputs = inputs
        self._divided = divided
        self._hashes: Any = None
        self._made = False
        self._making = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes kept alive for nobody but the writer thread, which is to make the hash."""
        return 0 if self._inputs is None or self.aside else self.nbytes

    def make(self, n: int | None = None, *, aside: bool = False) -> None:
        """Makes the hash, unless another thread did, and lets go of the inputs.

        Args:
            n: units, where they were not known.
            aside: on a thread of its own, which lets others run.
        """
        with self._making:
            self._make(self.n if n is None else n, aside=aside)

    def _make(self, n: int | None, *, aside: bool = False) -> None:
        if self._made:
            return
        try:
            if n is not None and not self._changed():
                inputs = self._inputs if self._divided is None else self._divided(self._inputs, n)
                with torch.no_grad():
                    self._hashes = input_hash_of(inputs, n, aside=aside)
            if self._changed():
                self.missing, self._hashes = CHANGED, None
        except Exception:  # noqa: BLE001 - inputs of the user's that can not be read cost their hash, not their rows
            self.missing = UNREADABLE
        finally:
            self._let_go()

    def hand_over(self) -> None:
        """Another thread will make it. A loader may write to its buffer without PyTorch: a glance is kept."""
        self.aside = True
        plain = [tensor for tensor in self._tensors if tensor.layout == torch.strided]
        self._glance = [(tensor, _glance(tensor)) for tensor in plain]

    def _changed(self) -> bool:
        if any(tensor._version != version for tensor, version in self._versions):  # noqa: SLF001
            return True
        return any(_glance(tensor) != before for tensor, before in self._glance)

    def _let_go(self) -> None:
        self._inputs, self._versions, self._divided, self._made = None, [], None, True
        self._tensors, self._glance = [], []

    def skip(self, why: str) -> None:
        """There will be none; the inputs are let go of."""
        self.missing = why
        self._let_go()

    def read(self, n: int) -> Any | None:
        """The hash (n, 2), None where there is none. Writer thread only.

        Args:
            n: units of the batch.
        """
        if not self._making.acquire(timeout=_PATIENCE_S):
            self.missing = LATE
            return None
        try:
            self._make(n)
        finally:
            self._making.release()
        return self._hashes if self._hashes is not None and len(self._hashes) == n else None


def _version(tensor: torch.Tensor) -> int | None:
    """The in-place counter; None of inference tensors, which have none.

    To ask a tensor whether it is one would let other threads take the interpreter.
    """
    try:
        return tensor._version  # noqa: SLF001
    except RuntimeError:
        return None


def _glance(tensor: torch.Tensor) -> bytes:
    """The bytes of a few numbers spread over a tensor; another batch hardly has the same.

    numpy reads them: every function of PyTorch lets other threads take the interpreter.
    """
    plain = tensor.detach() if tensor.requires_grad else tensor
    whole = plain.is_contiguous()
    try:
        values = plain.numpy()
        flat = values.reshape(-1) if whole else values[:1].reshape(-1)
        return flat[:: max(1, flat.size // _GLANCE)].tobytes()
    except (TypeError, RuntimeError):  # bfloat16, a conjugate's view
        with torch.no_grad():
            some = (plain if whole else plain[:1]).reshape(-1)
            some = some[:: max(1, some.numel() // _GLANCE)].resolve_conj().resolve_neg().clone()
            return some.view(torch.uint8).numpy().tobytes()


def weight(inputs: Any) -> int:
    """Bytes of the inputs; what does not tell (an image object) counts as large.

    >>> weight({"pixels": torch.zeros(2, 3), "text": ["ab", "c"]})
    27
    """
    if isinstance(inputs, torch.Tensor):
        return inputs.numel() * inputs.element_size()  # of a sparse one, as if it were dense
    if isinstance(inputs, np.ndarray):
        return int(inputs.nbytes)
    if isinstance(inputs, (str, bytes)):
        return len(inputs)
    if isinstance(inputs, Mapping):
        inputs = inputs.values()
    elif inputs is None or isinstance(inputs, (bool, int, float, complex, np.generic)):
        return 0
    elif not isinstance(inputs, (list, tuple)):
        return INLINE_BYTES + 1
    return sum(map(weight, inputs))


class HashThread:
    """Hashes batches beside the training; started with the first one, anew after a fork.

    It holds two batches at most: who brings a third is told that it is late. One that was taken waits for
    `go`, the next `take` or the writer thread, which makes it itself.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Fingerprint | None] = queue.SimpleQueue()
        self._held: list[Fingerprint] = []
        self._next: Fingerprint | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0

    def take(self, fingerprint: Fingerprint) -> bool:
        """Has the hash made soon; False: it is late, nothing was taken. Training thread only."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._queue, self._held, self._next = queue.SimpleQueue(), [], None
            self._thread = threading.Thread(
                target=_work, args=(self._queue, self._held), name="mld-hash", daemon=True
            )
            self._thread.start()
        self.go()
        if len(self._held) >= _HELD:
            return False
        fingerprint.hand_over()
        self._held.append(fingerprint)
        self._next = fingerprint
        return True

    def go(self) -> None:
        """Now is a good time: the training thread is about to leave the interpreter."""
        if self._next is not None:
            self._queue.put(self._next)
            self._next = None

    def close(self) -> None:
        """Ends the thread once it has made what it took.

        It is waited for: a thread that wakes while the interpreter is taken down is ended inside PyTorch's
        destructors, which ends the process with `terminate called without an active exception`.
        """
        self.go()
        self._queue.put(None)
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(_END_S)
        self._thread, self._pid = None, 0


def _work(waiting: queue.SimpleQueue[Fingerprint | None], held: list[Fingerprint]) -> None:
    while (fingerprint := waiting.get()) is not None:
        fingerprint.make(aside=True)
        held.remove(fingerprint)
        del fingerprint


class Moved:
    """The host's tensors of batches that went to a device, each for as long as its copy there lives.

    Two batches are held at most, more only while all of them fit into 16 MiB: a step of many micro-batches
    moves them all before the first is through.
    """

    def __init__(self) -> None:
        # By the copy's `id`, which only its own reference proves. Replaced whole: several threads may train.
        self._batches: tuple[dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]], ...] = ()

    def note(self, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> None:
        """A batch was moved.

        Args:
            before: its tensors as the loader gave them.
            after: the same in the same order, as they are now.
        """
        if len(before) != len(after):
            return
        pairs: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}
        for here, there in zip(before, after, strict=True):
            if here.is_cpu and not there.is_cpu and here.shape == there.shape and here.dtype == there.dtype:
                key = id(there)
                pairs[key] = (weakref.ref(there, partial(_forget, pairs, key)), here)
        kept = [batch for batch in (*self._batches, pairs) if batch]
        while len(kept) > _HELD and sum(map(_held_by, kept)) > _HELD_BYTES:
            kept.pop(0).clear()  # each pair's reference holds the whole
        self._batches = tuple(kept)

    def at_home(self, inputs: Any) -> Any | None:
        """The same inputs as they lay on the host; None where that is not known of one of their tensors."""
        batches = self._batches
        try:
            return _replaced(inputs, lambda there: _counterpart(batches, there))
        except LookupError:
            return None


moved: Final = Moved()
"""Of this process: frameworks move batches by functions of their own, whoever trains."""


def _forget(pairs: dict[int, Any], key: int, _: Any) -> None:
    pairs.pop(key, None)


def _held_by(pairs: dict[int, tuple[Any, torch.Tensor]]) -> int:
    return sum(weight(here) for _, here in list(pairs.values()))


def _counterpart(batches: Sequence[dict[int, Any]], there: torch.Tensor) -> torch.Tensor:
    for pairs in reversed(batches):
        reference, here = pairs.get(id(there), (None, None))
        if reference is not None and reference() is there and here is not None:
            found: torch.Tensor = here
            return found
    raise LookupError


def _replaced(value: Any, counterpart: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Nested inputs with other tensors in the place of those that lie on a device."""
    if isinstance(value, torch.Tensor):
        return value if value.is_cpu else counterpart(value)
    if isinstance(value, Mapping):
        return {key: _replaced(part, counterpart) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [_replaced(part, counterpart) for part in value]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
