"""The network of a reward model: a decoder, a head with one or several outputs, and weights of features beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from triloop.nn.decoder import Decoder
from triloop.nn.lora import merge_lora
from triloop.policies.native import NativeNetwork
from triloop.policies.ternary import twin
from triloop.sources.reward_config import RewardConfig
from triloop.sources.reward_features import SparseRows

__all__ = ["RewardNetwork", "bare_copy"]


class RewardNetwork(nn.Module):
    """What the learner trains. Every output starts at 0: the head and the features' weights are zero.

    ``overall`` maps the outputs of a text to its score.
    """

    overall: Tensor

    def __init__(self, decoder: Decoder, config: RewardConfig, features: int, precision: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.decoder = decoder.requires_grad_(config.train_trunk)
        self.head = nn.Linear(decoder.config.hidden_size, config.outputs, device=decoder.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.prior = nn.Parameter(torch.zeros(features, len(config.names), device=decoder.device)) if features else None
        self.register_buffer("overall", _direction(config), persistent=False)
        self._forward = NativeNetwork(decoder, precision)

    @torch.no_grad()
    def start_as(self, good: int, bad: int) -> None:
        """Let the score be logit(good) - logit(bad), the answer that the decoder gives already."""
        w = self.decoder.output_weight
        self.head.weight[0] = (w[good] - w[bad]).float()

    @property
    def vocab_size(self) -> int:
        """As the decoder's."""
        return self._forward.vocab_size

    @property
    def shared(self) -> int:
        """As the decoder's."""
        return self._forward.shared

    @property
    def floats_per_token(self) -> int:
        """As the decoder's."""
        return self._forward.floats_per_token

    @property
    def value_head(self) -> nn.Module:
        """The head, under the name that the learner knows."""
        return self.head

    def hidden(self, sequences: Sequence[Sequence[int]]) -> Float[Tensor, "tokens width"]:
        """The state after every token of these sequences, end to end."""
        if self.config.train_trunk:
            return self._forward.hidden(sequences)
        with torch.no_grad():
            return self._forward.hidden(sequences)

    def logits(self, hidden: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens vocab"]:
        """The decoder's; no loss of a reward model looks at them."""
        return self._forward.logits(hidden.detach())

    def known(self, rows: SparseRows, index: Sequence[int]) -> Float[Tensor, "rows outputs"]:
        """The features' part of the outputs: gain * w . features, for the rows ``index``."""
        assert self.prior is not None
        picked = [rows.row(i) for i in index]
        counts = np.array([len(c) for c, _ in picked], dtype=np.int64)
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64))
        columns = torch.from_numpy(np.concatenate([c for c, _ in picked]))
        values = torch.from_numpy(np.concatenate([v for _, v in picked])).to(self.prior.dtype)
        at = self.prior.device
        bag = F.embedding_bag(columns.to(at), self.prior, starts.to(at), mode="sum", per_sample_weights=values.to(at))
        return self.config.prior_gain * bag

    def ridge(self) -> Float[Tensor, ""]:
        """prior_l2 / 2 |gain w|^2; 0 without features."""
        if self.prior is None:
            return torch.zeros(())
        return 0.5 * self.config.prior_l2 * self.config.prior_gain**2 * self.prior.square().sum()


def bare_copy(decoder: Decoder) -> Decoder:
    """A decoder of its own with these weights, adapters merged, without a value head."""
    copy = merge_lora(twin(decoder))
    copy.value_head = None
    return copy


def _direction(config: RewardConfig) -> Tensor:
    if config.weights is None:
        return torch.eye(len(config.names))[0]
    return torch.tensor([0.0, *(float(config.weights.get(name, 0.0)) for name in config.attributes)])
