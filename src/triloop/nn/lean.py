"""torch without its compiler, which it imports to say that it is not to be used: 80 MB and a second or two of every run."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

import torch
import torch.utils.checkpoint as checkpointing
from torch import nn

__all__ = ["AdamW", "Embedding", "spare_compiler"]


@functools.cache
def spare_compiler() -> None:
    """Let optimisers and checkpointing run as they are.

    torch wraps some of their functions so that ``torch.compile`` does not look into them. The wrapper imports the compiler
    at its first call, unless its function says already what to run instead (``torch._compile``, torch 2.13). Where the
    compiler is imported anyway, or a later torch does otherwise, nothing changes.
    """
    if "torch._dynamo" in sys.modules:
        return
    for holder in (torch.optim.Optimizer, checkpointing):
        for wrapper in list(vars(holder).values()):
            inner, code = getattr(wrapper, "__wrapped__", None), getattr(wrapper, "__code__", None)
            if inner is not None and code is not None and code.co_filename == torch._compile.__file__:
                inner.__dynamo_disable = inner


class Embedding(nn.Embedding):
    """``nn.Embedding`` that draws no first weights where there is no memory for them: doing so imports the compiler too."""

    def reset_parameters(self) -> None:
        """As ``nn.Embedding``, but on the device ``meta``."""
        if not self.weight.is_meta:
            super().reset_parameters()


class AdamW(torch.optim.AdamW):
    """``torch.optim.AdamW``, whose ``step`` would import the compiler to break a graph that there is not."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """The same step."""
        return inspect.unwrap(torch.optim.AdamW.step)(self, closure)
