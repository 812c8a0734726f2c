"""What products with packed weights have in common: the calls of a decoding step, and the records that they read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["OwnProduct", "moved"]

Record = TypeVar("Record", bound="DataclassInstance")


def moved(packed: Record, device: torch.device | str) -> Record:
    """The same packed matrix on another device, for products with activations there."""
    tensors = {f.name: getattr(packed, f.name) for f in fields(packed)}
    there: dict[str, Any] = {name: t.to(device) for name, t in tensors.items() if isinstance(t, Tensor)}
    return replace(packed, **there)


class OwnProduct(ABC):
    """A linear that multiplies in a way of its own."""

    @abstractmethod
    def into(self, x: Float[Tensor, "n in"], out: Float[Tensor, "n out"]) -> Callable[[], object]:
        """The call that writes the product of ``x`` into ``out`` with the weights as they stand now, for a list of calls on
        the same memory. Both must outlive it; after a change of the weights it is to be made anew."""
