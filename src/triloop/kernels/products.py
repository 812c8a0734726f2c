"""What a module that stands in for a linear offers a decoding step: its product on fixed memory, without gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

__all__ = ["OwnProduct"]


class OwnProduct(ABC):
    """A linear that multiplies in a way of its own."""

    @abstractmethod
    def into(self, x: Float[Tensor, "n in"], out: Float[Tensor, "n out"]) -> Callable[[], object]:
        """The call that writes the product of ``x`` into ``out`` with the weights as they stand now, for a list of calls on
        the same memory. Both must outlive it; after a change of the weights it is to be made anew."""
