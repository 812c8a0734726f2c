"""Conversion in place: decoders, what else has linears, back again, and training of each shape."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triloop.errors import ConfigError
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.ternary.attention import SplitAttention
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import NormedLinear, calibrate, dense, linears, set_blend, ternarise
from triloop.ternary.linear import TernaryLinear
from triloop.ternary.schedule import LayerwiseBlend

SMALL = DecoderConfig(
    vocab_size=19, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4
)


def decoder(**options: Any) -> Decoder:
    made = Decoder(DecoderConfig(**{**vars(SMALL), **options})).initialise(seed=0, std=0.2)
    made.add_value_head()
    return made


def ids(rows: int = 4, length: int = 12) -> Tensor:
    return torch.randint(0, 19, (rows, length), generator=torch.Generator().manual_seed(1))


# ---------------------------------------------------------------- decoders


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoders_layers_are_converted_and_nothing_else(tied: bool) -> None:
    d = decoder(tie_embeddings=tied)
    before = dict(d.named_parameters())
    made = ternarise(d, TernaryConfig())
    assert list(made) == [f"layers.{i}.{part}" for i in (0, 1) for part in ("qkv", "out", "gate_up", "down")]
    assert made == linears(d) and all(isinstance(m, TernaryLinear) for m in made.values())
    after = dict(d.named_parameters())
    assert after.keys() == before.keys() and all(after[k] is before[k] for k in after)
    assert type(d.value_head) is nn.Linear and (tied or type(d.head) is nn.Linear)


def test_patterns_choose() -> None:
    assert list(ternarise(decoder(), TernaryConfig(), names=["*.down", "layers.1.out"])) == [
        "layers.0.down",
        "layers.1.out",
        "layers.1.down",
    ]


def test_errors_say_what_there_is() -> None:
    with pytest.raises(
        ConfigError, match=r"no linear fits the names \('blocks\.\*',\); this network has: layers.0.qkv"
    ):
        ternarise(decoder(), TernaryConfig(), names=["blocks.*"])
    d = decoder()
    ternarise(d, TernaryConfig())
    with pytest.raises(ConfigError, match="this network has: value_head"):
        ternarise(d, TernaryConfig())
    with pytest.raises(ConfigError, match="a lone Linear has no parent"):
        ternarise(nn.Linear(2, 2), TernaryConfig())


def test_all_ways_through_a_ternary_decoder_agree() -> None:
    d = decoder()
    ternarise(d, TernaryConfig(quantiser="dual", norm=True))
    tokens = ids(3, 9)
    whole = d.logits_padded(tokens)
    with torch.no_grad():
        torch.testing.assert_close(d.logits_padded(tokens), whole.detach(), rtol=1e-4, atol=1e-4)
        logits, cache = d.prefill(tokens[:, :5], torch.full((3,), 5))
        torch.testing.assert_close(logits, whole[:, 4].detach(), rtol=1e-4, atol=1e-4)
        assert cache.length == 5


def test_a_ternary_decoder_learns_and_its_state_continues() -> None:
    def train(d: Decoder, optimiser: torch.optim.Optimizer, steps: int) -> list[float]:
        tokens, losses = ids(), []
        for _ in range(steps):
            logits = d.logits_padded(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    def fresh() -> tuple[Decoder, torch.optim.Optimizer]:
        d = decoder()
        ternarise(d, TernaryConfig(quantiser="dual", activations="elastic", norm=True))
        return d, torch.optim.AdamW(d.parameters(), lr=0.01, fused=True)

    d, optimiser = fresh()
    first = train(d, optimiser, 12)
    assert first[-1] < 0.8 * first[0]
    other, again = fresh()
    other.load_state_dict(d.state_dict())
    again.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    assert train(other, again, 3) == train(d, optimiser, 3)


# ---------------------------------------------------------------- back


@pytest.mark.parametrize("quantiser", ["absmean", "dead-zone", "dual", "paretoq-2"])
def test_dense_computes_the_same_on_unquantised_activations(quantiser: str) -> None:
    d = decoder(qkv_bias=True)
    ternarise(d, TernaryConfig(quantiser=quantiser, activations="none"))
    tokens = ids()
    with torch.no_grad():
        expected = d.logits_padded(tokens)
        assert dense(d) is d and not linears(d)
        assert type(d.blocks[0].qkv) is nn.Linear
        torch.testing.assert_close(d.logits_padded(tokens), expected, rtol=1e-4, atol=1e-5)


def test_dense_weights_are_the_levels_and_the_norm_stays() -> None:
    net = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    ternarise(net, TernaryConfig(norm=True, activations="none"), names=["2"])
    x = torch.randn(4, 6)
    with torch.no_grad():
        expected = net(x)
        dense(net)
        last = net[2]
        assert isinstance(last, NormedLinear)
        assert len(last.weight.abs().unique()) <= 2
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)


def test_a_module_in_two_places_stays_one() -> None:
    shared = nn.Linear(4, 4)
    net = nn.ModuleDict({"layers": nn.ModuleList([shared, nn.Linear(4, 4), shared])})
    made = ternarise(net, TernaryConfig())
    assert list(made) == ["layers.0", "layers.1", "layers.2"]
    assert made["layers.0"] is made["layers.2"] is not made["layers.1"]
    dense(net)
    assert net.get_submodule("layers.0") is net.get_submodule("layers.2")


# ---------------------------------------------------------------- gradual, elastic


def test_set_blend_by_layer_and_for_all() -> None:
    d = decoder()
    tokens = ids()
    plain = d.logits_padded(tokens)
    made = ternarise(d, TernaryConfig(gradual=True))
    assert torch.equal(d.logits_padded(tokens), plain)
    set_blend(d, LayerwiseBlend(steps=4, spread=0.5).shares(2, made))
    assert {m.share for n, m in made.items() if n.startswith("layers.0")} == {1.0}
    assert {m.share for n, m in made.items() if n.startswith("layers.1")} == {0.0}
    set_blend(d, 1.0)
    other = decoder()
    ternarise(other, TernaryConfig())
    assert torch.equal(d.logits_padded(tokens), other.logits_padded(tokens))


def test_set_blend_refuses() -> None:
    d = decoder()
    ternarise(d, TernaryConfig())
    with pytest.raises(ConfigError, match="no layer here moves gradually"):
        set_blend(d, 0.5)
    d = decoder()
    ternarise(d, TernaryConfig(gradual=True))
    with pytest.raises(ConfigError, match="share 1.5 of layers.0.qkv is not between 0"):
        set_blend(d, 1.5)
    with pytest.raises(ConfigError, match="no share for layer layers.0.out"):
        set_blend(d, {"layers.0.qkv": 0.5})


def test_calibrate_starts_scales_from_what_the_layers_see() -> None:
    net = nn.Sequential(nn.Linear(3, 2, bias=False))
    made = ternarise(net, TernaryConfig(activations="elastic", activation_bits=3), names=["*"])
    x = torch.tensor([[1.0, -2.0, 3.0]])
    calibrate(net, lambda: [net(x), net(3 * x)])  # mean sizes 2 and 6; largest code 3
    scale = made["0"].input_scale
    assert scale is not None and scale.item() == pytest.approx(2 * 4 / 3**0.5)
    assert not net[0]._forward_pre_hooks
    other = nn.Sequential(nn.Linear(3, 2))
    ternarise(other, TernaryConfig(), names=["*"])
    with pytest.raises(ConfigError, match="no layer here has elastic activations"):
        calibrate(other, lambda: None)


# ---------------------------------------------------------------- torch's attention


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", ["none", "causal", "padding", "both", "heads"])
def test_split_attention_is_torchs(batch_first: bool, masks: str) -> None:
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(12, 3, batch_first=batch_first)
    nn.init.normal_(whole.in_proj_bias)
    split = SplitAttention(whole)
    x = torch.randn(2, 5, 12) if batch_first else torch.randn(5, 2, 12)
    memory = torch.randn(2, 7, 12) if batch_first else torch.randn(7, 2, 12)
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    options: dict[str, Any] = {
        "none": {},
        "causal": {"attn_mask": future},
        "padding": {"key_padding_mask": padding},
        "both": {
            "attn_mask": torch.zeros(5, 5).masked_fill(future, float("-inf")),
            "key_padding_mask": torch.zeros(2, 5).masked_fill(padding, float("-inf")),
        },
        "heads": {"attn_mask": torch.randn(6, 5, 5)},
    }[masks]
    expected = whole(x, x, x, need_weights=False, **options)[0]
    torch.testing.assert_close(split(x, x, x, **options)[0], expected)
    if masks == "none":
        torch.testing.assert_close(split(x, memory, memory)[0], whole(x, memory, memory, need_weights=False)[0])


def test_attention_that_cannot_be_split_says_so() -> None:
    with pytest.raises(ConfigError, match="other widths for keys and values"):
        SplitAttention(nn.MultiheadAttention(8, 2, kdim=4, vdim=4))
    with pytest.raises(ConfigError, match="gives no attention weights"):
        SplitAttention(nn.MultiheadAttention(8, 2, batch_first=True))(*[torch.zeros(1, 2, 8)] * 3, need_weights=True)


# ---------------------------------------------------------------- other shapes


class Experts(nn.Module):
    """A router in full precision, two experts, the better one taken by its probability (A27)."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        share, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.layers):
            rows = torch.nonzero(chosen == i)[:, 0]
            out = out.index_put((rows,), expert(x[rows]) * share[rows, None])
        return x + out


class Recurrent(nn.Module):
    """A diagonal state space between two projections: h_t = a h_(t-1) + in(x_t), y_t = out(h_t) (A58)."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(-1, 3, 16))
        self.layers = nn.ModuleDict({"in": nn.Linear(8, 16), "out": nn.Linear(16, 8)})

    def forward(self, x: Tensor) -> Tensor:
        fed, state, seen = self.layers["in"](x), torch.zeros(len(x), 16), []
        for t in range(x.shape[1]):
            state = self.decay.sigmoid() * state + fed[:, t]
            seen.append(state)
        return x + self.layers["out"](torch.stack(seen, 1))


class Dual(nn.Module):
    """Two towers whose rows are to be told apart by their products (S006)."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.normalize(self.left(x), dim=-1), F.normalize(self.right(x.flip(1)), dim=-1)
        return 5 * a @ b.t()


class Both(nn.Module):
    """Encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Transformer(8, 2, 1, 1, 16, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.whole(x, x.flip(1), tgt_mask=mask)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))


def encoder() -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), 2, enable_nested_tensor=False
    )


ATTENTION = ("self_attn.in_proj", "self_attn.out_proj")
SHAPES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], tuple[str, ...]]] = {
    "mlp": (mlp, ("*",), ("0", "2")),
    "encoder": (
        encoder,
        ("layers.*",),
        tuple(f"layers.{i}.{p}" for i in (0, 1) for p in (*ATTENTION, "linear1", "linear2")),
    ),
    "encoder-decoder": (
        Both,
        ("*.layers.*",),
        (
            *(f"whole.encoder.layers.0.{p}" for p in (*ATTENTION, "linear1", "linear2")),
            *(f"whole.decoder.layers.0.{p}" for p in ATTENTION),
            *(f"whole.decoder.layers.0.multihead_attn.{p}" for p in ("in_proj", "out_proj")),
            *(f"whole.decoder.layers.0.{p}" for p in ("linear1", "linear2")),
        ),
    ),
    "experts": (Experts, ("layers.*",), ("layers.0.0", "layers.0.2", "layers.1.0", "layers.1.2")),
    "state-space": (Recurrent, ("layers.*",), ("layers.in", "layers.out")),
    "dual encoder": (Dual, ("left.*", "right.*"), ("left.0", "left.2", "right.0", "right.2")),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("quantiser", ["absmean", "dual"])
def test_conversion_finds_the_linears_and_training_lowers_a_loss(shape: str, quantiser: str) -> None:
    make, names, expected = SHAPES[shape]
    torch.manual_seed(0)
    net = make()
    assert tuple(ternarise(net, TernaryConfig(quantiser=quantiser, granularity="channel"), names)) == expected
    x = torch.randn(16, 6, 8) if shape in ("encoder", "encoder-decoder", "state-space") else torch.randn(16, 8)
    target = x.flip(-1).tanh()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.03)
    losses = []
    for _ in range(30):
        out = net(x)
        loss = F.cross_entropy(out, torch.arange(16)) if shape == "dual encoder" else F.mse_loss(out, target)
        optimiser.zero_grad()
        loss.backward()
        for name in expected:
            assert net.get_submodule(name).weight.grad is not None
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
    net.eval()
    optimiser.zero_grad(set_to_none=True)
    learning = net(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(net(x), learning, rtol=1e-3, atol=1e-4)
