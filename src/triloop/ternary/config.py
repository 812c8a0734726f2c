"""What a network's linears become: the quantisers by name, and the settings of one conversion. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from types import MappingProxyType

from triloop.errors import ConfigError

__all__ = ["ACTIVATIONS", "GRANULARITIES", "HEADS", "QUANTISERS", "Quantiser", "TernaryConfig"]

GRANULARITIES = ("tensor", "channel", "group")
"""What shares a scale: all weights of a matrix, those of one output, or ``group`` neighbours of one output's."""

ACTIVATIONS = ("int8", "int8-256", "none", "elastic")
"""int8: per token by its largest magnitude; int8-256: per token and block of 256 inputs, with weight scales in half
precision, as llama.cpp multiplies TQ1_0 and TQ2_0 (its Q8_K); none: as they come; elastic: a learned scale and zero point
(S002)."""

HEADS = ("full", "int8")
"""What a policy's output head multiplies: full precision, or whole numbers -127 to 127 with a scale for each row."""


@dataclass(frozen=True, kw_only=True)
class Quantiser:
    """What a weight quantiser is, apart from its arithmetic (``triloop.ternary.quantisers``)."""

    codes: tuple[int, ...]
    """The integers that a weight can become, in order."""
    learned: tuple[str, ...] = ()
    """What is trained beside the weight, one number for each scale: ``scale``, ``shift``."""
    bias: bool = False
    """Whether weights of code 0 add to the layer's bias (Tequila)."""
    granularity: str
    """The one of the paper."""
    source: str

    @property
    def bits(self) -> float:
        """Information in one code: log2 of their number."""
        return log2(len(self.codes))

    @property
    def packable(self) -> bool:
        """Whether the codes fit the kernels for weights -1, 0 and 1."""
        return set(self.codes) <= {-1, 0, 1}


_TERNARY = (-1, 0, 1)

QUANTISERS: Mapping[str, Quantiser] = MappingProxyType(
    {
        "absmean": Quantiser(codes=_TERNARY, granularity="tensor", source="BitNet b1.58, arXiv:2402.17764 eq. 1-3"),
        "absmedian": Quantiser(codes=_TERNARY, granularity="tensor", source="Nielsen et al., arXiv:2411.05882"),
        "statistics": Quantiser(codes=_TERNARY, granularity="channel", source="Liu et al., arXiv:2306.01841"),
        "twn": Quantiser(codes=_TERNARY, granularity="channel", source="Ternary weight networks, arXiv:1605.04711"),
        "dead-zone": Quantiser(codes=_TERNARY, bias=True, granularity="channel", source="Tequila, arXiv:2509.23809"),
        "dual": Quantiser(
            codes=_TERNARY, learned=("scale", "shift"), granularity="channel", source="TernaryLLM, arXiv:2406.07177"
        ),
        "binary": Quantiser(codes=(-1, 1), granularity="channel", source="XNOR-Net, arXiv:1603.05279 eq. 6"),
        "paretoq-1": Quantiser(codes=(-1, 1), learned=("scale",), granularity="channel", source="arXiv:2502.02631"),
        "paretoq-1.58": Quantiser(codes=_TERNARY, learned=("scale",), granularity="channel", source="arXiv:2502.02631"),
        "paretoq-2": Quantiser(
            codes=(-3, -1, 1, 3), learned=("scale",), granularity="channel", source="ParetoQ, arXiv:2502.02631"
        ),
        "paretoq-3": Quantiser(
            codes=tuple(range(-4, 4)), learned=("scale",), granularity="channel", source="LSQ, arXiv:1902.08153"
        ),
        "paretoq-4": Quantiser(
            codes=tuple(range(-8, 8)), learned=("scale",), granularity="channel", source="LSQ, arXiv:1902.08153"
        ),
    }
)
"""Every weight quantiser. ParetoQ names its method by bits: elastic binary, stretched elastic, learned step size."""


@dataclass(frozen=True, kw_only=True)
class TernaryConfig:
    """How the linears of a network are quantised."""

    quantiser: str = "absmean"
    """A name out of ``QUANTISERS``."""
    granularity: str | None = None
    """What shares a scale: tensor, channel or group. None: as in the quantiser's paper."""
    group: int = 0
    """Neighbouring inputs that share a scale; only for granularity group. The last group may be smaller."""
    activations: str = "int8"
    """int8, int8-256 (what llama.cpp computes), none or elastic."""
    activation_bits: int = 8
    """Bits of elastic activations: 1 (-1, 1), 2 (-1, 0, 1), or 3 to 8."""
    norm: bool = False
    """An RMS norm with a weight of its own before each quantised product (arXiv:2505.08823)."""
    norm_eps: float = 1e-6
    """Added to the mean square in that norm."""
    gradual: bool = False
    """Start from full precision; ``set_blend`` moves each layer towards its codes. Off: codes from the first step."""
    dead_zone: float = 1e-3
    """How much of the weights of code 0 goes into the bias; only for the quantiser dead-zone."""
    head: str = "full"
    """full, or int8: the output head's weights by row, and its input by token (``triloop.ternary.head``). It is read where
    a policy is made ternary (``triloop.policies.ternary``); other networks' heads are converted one by one."""

    def __post_init__(self) -> None:
        if self.quantiser not in QUANTISERS:
            raise ConfigError(f"no quantiser {self.quantiser!r}; choose one of {', '.join(QUANTISERS)}")
        if self.granularity not in (None, *GRANULARITIES):
            raise ConfigError(f"granularity {self.granularity!r} is none of {', '.join(GRANULARITIES)}")
        if self.activations not in ACTIVATIONS:
            raise ConfigError(f"activations {self.activations!r} are none of {', '.join(ACTIVATIONS)}")
        if (self.group > 0) != (self.granularity == "group") or self.group < 0:
            raise ConfigError(
                f"group {self.group} with granularity {self.granularity}: give a positive group with granularity "
                "group, and none with another"
            )
        if self.activations == "int8-256" and self.group % 256:
            raise ConfigError(
                f"group {self.group} with activations int8-256: expected a multiple of 256, so that a block of activations "
                "meets one scale of a weight"
            )
        if not 1 <= self.activation_bits <= 8:
            raise ConfigError(f"activation_bits {self.activation_bits} is not between 1 and 8")
        if self.activation_bits != 8 and self.activations != "elastic":
            raise ConfigError(
                f"activation_bits {self.activation_bits} needs activations elastic; {self.activations} has no choice"
            )
        if not self.norm_eps > 0 or (self.norm_eps != 1e-6 and not self.norm):
            raise ConfigError(f"norm_eps {self.norm_eps} must be positive, and is read with norm=True only")
        if not 0 <= self.dead_zone < 1:
            raise ConfigError(f"dead_zone {self.dead_zone} must lie in [0, 1); the paper takes 1e-3")
        if self.head not in HEADS:
            raise ConfigError(f"head {self.head!r} is none of {', '.join(HEADS)}")
        if self.dead_zone != 1e-3 and self.quantiser != "dead-zone":
            raise ConfigError(f"dead_zone {self.dead_zone} is read by the quantiser dead-zone, not by {self.quantiser}")

    @property
    def kind(self) -> Quantiser:
        """The quantiser's record."""
        return QUANTISERS[self.quantiser]

    @property
    def shared_by(self) -> str:
        """The granularity, chosen or the paper's."""
        return self.granularity or self.kind.granularity
