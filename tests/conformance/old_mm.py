"""A checkout written for MMCV 1 and MMDetection 2, on today's packages and without what was to be compiled.

Files named by the test are the repository's own, under their own names. Every other module of theirs is empty: what is
asked of it is looked for in those files, then among stand-ins, and else is a class that does nothing.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

CHECKOUTS = os.environ.get("MLD_CONFORMANCE")
_REAL = ("mmcv.cnn", "mmcv.ops", "mmcv.utils", "mmcv.transforms")
"""Of MMCV 2, which these repositories import under the same names."""


class Nothing:
    """What was not brought along: as a decorator it leaves things as they are, as a base it adds nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return _same if "absent" in vars(cls) else object.__new__(cls)


def _same(thing: Any) -> Any:
    return thing


def decorator(*_: Any, **__: Any) -> Callable[[Any], Any]:
    """Of `force_fp32(apply_to=...)` and the like."""
    return _same


class Base(nn.Module):
    """MMCV 1's module, as far as it is used."""

    def __init__(self, init_cfg: Any = None) -> None:
        super().__init__()
        self.init_cfg = init_cfg

    def init_weights(self, pretrained: Any = None) -> None:
        """Random as they are."""


class Passed(nn.Identity):
    """In place of a loss, a backbone."""

    use_sigmoid = True


class Registry:
    """Of all kinds of parts: a part is looked for in the files."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._module_dict: dict[str, Any] = {}

    def register_module(self, *given: Any, **_: Any) -> Any:
        """As a decorator with arguments, or without."""
        return given[0] if given and isinstance(given[0], type) else _same

    def build(self, config: Any, *more: Any, default_args: Mapping[str, Any] | None = None) -> Any:
        """A part that is no file's passes on what it is given."""
        given = next((one for one in more if isinstance(one, Mapping)), default_args)
        rest = {**(given or {}), **config}
        made = self._files.find(rest.pop("type"))
        return Passed() if made is None else made(**rest)


class Files(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of a checkout.

    Args:
        names: modules that are files, by the checkout they are of.
        packages: names at the top whose other modules are empty.
    """

    def __init__(self, names: Mapping[Path, Sequence[str]], packages: Sequence[str]) -> None:
        self.paths = {
            name: root / (name.replace(".", "/") + ".py") for root, own in names.items() for name in own
        }
        self.packages = tuple(packages)
        self._where: dict[str, str] = {}
        for name, path in self.paths.items():
            for made in re.findall(r"^(?:class|def) (\w+)", path.read_text(), re.MULTILINE):
                self._where.setdefault(made, name)
        self.registry = Registry(self)
        self.stand_ins: dict[str, Any] = {
            "BaseModule": Base,
            "BaseDetector": Base,
            "BaseBBoxCoder": object,
            "Dataset": object,
            "force_fp32": decorator,
            "auto_fp16": decorator,
            "multi_apply": multi_apply,
            "build": self.registry.build,
            "build_from_cfg": self.registry.build,
            "Registry": lambda *_, **__: self.registry,
            "build_bbox_coder": self.registry.build,
        }

    def find(self, name: str) -> Any:
        """A class or a function of the files; None where there is none."""
        where = self._where.get(name)
        return None if where is None else getattr(importlib.import_module(where), name)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name in self.paths:
            return importlib.util.spec_from_file_location(name, self.paths[name])
        if name.split(".", maxsplit=1)[0] not in self.packages or name.startswith(_REAL):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        module = types.ModuleType(spec.name)
        module.__getattr__ = functools.partial(self.asked, spec.name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: Any) -> None:
        """There is nothing in it."""

    def asked(self, module: str, name: str) -> Any:
        """What a module that is no file holds under a name."""
        if name.startswith("__"):
            raise AttributeError(name)
        if f"{module}.{name}" in self.paths:
            return importlib.import_module(f"{module}.{name}")
        found = self.find(name)
        if found is not None:
            return found
        if name in self.stand_ins:
            return self.stand_ins[name]
        if name.isupper():
            return self.registry
        return type(name, (Nothing,), {"absent": True})


def multi_apply(function: Any, *given: Any, **more: Any) -> Any:
    """MMDetection's: a list for each of the results."""
    return tuple(map(list, zip(*(function(*one, **more) for one in zip(*given, strict=False)), strict=True)))


def root_of(name: str, blobs: Mapping[str, str]) -> Path:
    """The checkout of a repository; skips where it is not there.

    Args:
        name: owner/name.
        blobs: its files and their `git hash-object` at the commit in docs/compatibility.md.
    """
    places = [Path(CHECKOUTS or "") / one for one in (name, name.split("/")[1])]
    root = next((place for place in places if all((place / path).is_file() for path in blobs)), None)
    if root is None:
        pytest.skip(f"{name} is not in {CHECKOUTS}")
    for path, blob in blobs.items():
        body = (root / path).read_bytes()
        digest = hashlib.sha1(b"blob %d\0" % len(body) + body, usedforsecurity=False).hexdigest()
        assert digest == blob, f"{root / path} is not that of the commit in docs/compatibility.md"
    return root


def on_path(patch: pytest.MonkeyPatch, files: Files) -> None:
    """Make the files importable until the patch is undone."""
    import mmcv.cnn
    from mmengine import fileio, model, utils

    for name in ("kaiming_init", "xavier_init", "normal_init", "constant_init", "bias_init_with_prob"):
        patch.setattr(mmcv.cnn, name, getattr(model, name), raising=False)
    for name in ("mkdir_or_exist", "track_iter_progress"):
        patch.setattr(mmcv, name, getattr(utils, name), raising=False)
    patch.setattr(mmcv, "dump", fileio.dump, raising=False)
    patch.setattr(mmcv.utils, "TORCH_VERSION", torch.__version__, raising=False)
    patch.setattr(mmcv.utils, "digit_version", utils.digit_version, raising=False)
    patch.setattr(mmcv.cnn, "MODELS", files.registry, raising=False)
    patch.setattr(mmcv.utils, "Registry", lambda *_, **__: files.registry, raising=False)
    kept = {"mmcv", *_REAL}
    for name in [name for name in sys.modules if name.split(".")[0] in files.packages]:
        if not name.startswith(_REAL) and name not in kept:
            patch.delitem(sys.modules, name)
    patch.setattr(sys, "meta_path", [files, *sys.meta_path])
    patch.setattr(torch.Tensor, "cuda", lambda self, *_, **__: self)
