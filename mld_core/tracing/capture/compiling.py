"""Whether this line is being traced by Dynamo: the function of each PyTorch that its Dynamo knows.

Hooks ask with every call, so that nothing is looked up here but once.
"""

from __future__ import annotations

import torch

try:
    is_compiling = torch.compiler.is_compiling  # since 2.3
except AttributeError:
    try:
        from torch._utils import is_compiling  # since 2.1
    except ImportError:
        from torch._dynamo.external_utils import is_compiling  # 2.0

__all__ = ["is_compiling"]
