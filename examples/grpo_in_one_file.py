"""GRPO in one file, without the framework: a Llama model, its sampler, its verifier, its loss and its loop.

    python examples/grpo_in_one_file.py [--base DIR] [--rounds 30] [--seed 0]

Needs torch and safetensors alone. The base is a Hugging Face directory whose tokenizer has one token per character, such
as the one that Triloop brings. The task is chained arithmetic: after ``7+12-5=`` the policy writes running values and,
behind a ``#``, the answer: ``19,14#14``. A verifier pays +1 for the right answer and -1 for any other.

tests/test_example.py holds it to the library: the same base, problems and random numbers give the same samples, the same
losses and, after several updates, the same weights.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

# ---------------------------------------------------------------- the model: a Llama decoder in 50 lines


@dataclass
class Model:
    """Weights by their Hugging Face names, the shape of the decoder, and the characters that it speaks."""

    w: dict[str, Tensor]
    layers: int
    heads: int
    kv_heads: int
    dim: int
    eps: float
    theta: float
    vocab: dict[str, int]
    eos: int


def load(folder: Path) -> Model:
    c = json.loads((folder / "config.json").read_text())
    w = {name: tensor.float().requires_grad_() for name, tensor in load_file(folder / "model.safetensors").items()}
    vocab = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return Model(
        w=w, layers=c["num_hidden_layers"], heads=c["num_attention_heads"], kv_heads=c["num_key_value_heads"],
        dim=c["head_dim"], eps=c["rms_norm_eps"], theta=c["rope_theta"], vocab=vocab, eos=c["eos_token_id"],
    )  # fmt: skip


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [batch, heads, time, dim]: pairs (i, i + dim/2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def forward(m: Model, ids: Tensor, pad: Tensor, cache: list[Tensor] | None = None) -> Tensor:
    """Logits [batch, time, vocab] of ``ids`` [batch, time]. Row b begins with ``pad[b]`` columns that mean nothing.

    ``cache`` holds keys and values of the columns before these, layer by layer, and is extended in place.
    """
    past = cache[0].shape[2] if cache else 0
    batch, time = ids.shape
    columns, keys = torch.arange(past, past + time), torch.arange(past + time)
    # A padded column sees itself, for a softmax over nothing is NaN; no real column sees a padded one.
    seen = (keys <= columns[:, None]) & (keys >= pad[:, None, None]) | (keys == columns[:, None])
    frequency = m.theta ** -(torch.arange(0, m.dim, 2) / m.dim)
    angle = (columns - pad[:, None]).clamp(min=0)[..., None] * frequency
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    embed = m.w["model.embed_tokens.weight"]
    x = embed[ids]
    for i in range(m.layers):
        name = f"model.layers.{i}."
        h = norm(x, m.w[name + "input_layernorm.weight"], m.eps)
        q, k, v = (
            F.linear(h, m.w[f"{name}self_attn.{p}_proj.weight"]).view(batch, time, -1, m.dim).transpose(1, 2)
            for p in ("q", "k", "v")
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            if past:
                k, v = torch.cat((cache[2 * i], k), dim=2), torch.cat((cache[2 * i + 1], v), dim=2)
            cache[2 * i : 2 * i + 2] = [k, v]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None], enable_gqa=m.heads != m.kv_heads)
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, time, -1), m.w[name + "self_attn.o_proj.weight"])
        h = norm(x, m.w[name + "post_attention_layernorm.weight"], m.eps)
        gate, up = F.linear(h, m.w[name + "mlp.gate_proj.weight"]), F.linear(h, m.w[name + "mlp.up_proj.weight"])
        x = x + F.linear(F.silu(gate) * up, m.w[name + "mlp.down_proj.weight"])
    return F.linear(norm(x, m.w["model.norm.weight"], m.eps), m.w.get("lm_head.weight", embed))


# ---------------------------------------------------------------- rollouts


@dataclass
class Samples:
    """Completions, and what the loss needs of them. ``tokens``, ``mask`` and ``logp`` are [rows, time]."""

    prompts: Tensor
    """[rows, width], padded on the left."""
    pad: Tensor
    tokens: Tensor
    mask: Tensor
    """True up to and including the end-of-sequence token."""
    logp: Tensor
    """Of each token under the policy that drew it, nats."""
    texts: list[str]


@torch.no_grad()
def sample(m: Model, prompts: list[str], uniform: Tensor) -> Samples:
    """One completion per prompt. Token t of row b is drawn with the number ``uniform[b, t]`` in [0, 1)."""
    encoded = [[m.vocab[c] for c in p] for p in prompts]
    width = max(map(len, encoded))
    pad = torch.tensor([width - len(e) for e in encoded])
    ids = torch.tensor([[0] * (width - len(e)) + e for e in encoded])
    cache: list[Tensor] = []
    logits = forward(m, ids, pad, cache)[:, -1]
    rows, limit = uniform.shape
    alive = torch.ones(rows, dtype=torch.bool)
    drawn, logps, mask = [], [], []
    for t in range(limit):
        p = logits.log_softmax(-1)
        cumulative = p.exp().cumsum(-1)
        token = (cumulative <= uniform[:, t : t + 1].clamp(max=1 - 2**-24) * cumulative[:, -1:]).sum(-1)
        token = token.clamp(max=logits.shape[-1] - 1)
        drawn.append(token)
        logps.append(p.gather(1, token[:, None])[:, 0])
        mask.append(alive)
        alive = alive & (token != m.eos)
        if not alive.any() or t == limit - 1:
            break
        logits = forward(m, token[:, None], pad, cache)[:, -1]
    tokens, kept = torch.stack(drawn, 1), torch.stack(mask, 1)
    letters = {i: c for c, i in m.vocab.items() if len(c) == 1}
    texts = [
        "".join(letters.get(t, "") for t, own in zip(row, keep, strict=True) if own)
        for row, keep in zip(tokens.tolist(), kept.tolist(), strict=True)
    ]
    return Samples(ids, pad, tokens, kept, torch.stack(logps, 1), texts)


# ---------------------------------------------------------------- the loss


def advantages(rewards: Tensor, group: int, eps: float = 1e-6) -> Tensor:
    """(r - mean) / (std + eps) within each prompt's group; 0 where all rewards of a group are equal."""
    table = rewards.view(-1, group)
    centred = table - table.mean(1, keepdim=True)
    return (centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)).view(-1)


def grpo_loss(m: Model, s: Samples, advantage: Tensor, clip: float = 0.2) -> Tensor:
    """The clipped surrogate, mean over each completion's tokens, then over completions. arXiv:2402.03300 eq. 3."""
    width = s.prompts.shape[1]
    logits = forward(m, torch.cat((s.prompts, s.tokens), 1)[:, :-1], s.pad)[:, width - 1 :]
    logp = logits.log_softmax(-1).gather(2, s.tokens[:, :, None])[:, :, 0]
    ratio = torch.where(s.mask, logp - s.logp, 0.0).exp()
    a = advantage[:, None]
    loss = -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
    return ((loss * s.mask).sum(1) / s.mask.sum(1)).mean()


def update(m: Model, optimiser: torch.optim.Optimizer, s: Samples, advantage: Tensor) -> float:
    """One optimiser step; the loss before it."""
    loss = grpo_loss(m, s, advantage)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(list(m.w.values()), 1.0)
    optimiser.step()
    optimiser.zero_grad()
    return float(loss.detach())


# ---------------------------------------------------------------- the task


def problem(r: random.Random) -> tuple[str, str]:
    """A chain of three or four additions and subtractions whose running value stays in 0 .. 99, and its answer."""
    value = r.randint(1, 20)
    text = str(value)
    for _ in range(r.choice((3, 4))):
        minus = value == 99 or (value > 0 and r.random() < 0.5)
        operand = r.randint(1, min(20, value if minus else 99 - value))
        value += -operand if minus else operand
        text += f"{'-' if minus else '+'}{operand}"
    return f"{text}=", str(value)


def verify(answer: str, text: str) -> float:
    """+1 for one ``#`` with the right answer behind it, else -1."""
    return 1.0 if text.partition("#")[2] == answer else -1.0


# ---------------------------------------------------------------- the loop


def score(m: Model, n: int, limit: int, seed: int) -> float:
    """Share of ``n`` problems that are solved at the first attempt."""
    problems = [problem(random.Random(f"held out {seed} {i}")) for i in range(n)]
    uniform = torch.rand(n, limit, generator=torch.Generator().manual_seed(seed))
    texts = sample(m, [p for p, _ in problems], uniform).texts
    return sum(verify(a, t) > 0 for (_, a), t in zip(problems, texts, strict=True)) / n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--base", type=Path, default=here / "src" / "triloop" / "bases" / "arithmetic")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    m = load(args.base)
    optimiser = torch.optim.AdamW(list(m.w.values()), lr=3e-4, betas=(0.9, 0.999), weight_decay=0.0)
    numbers, chains = torch.Generator().manual_seed(args.seed), random.Random(args.seed)
    prompts, group, limit = 32, 8, 28
    print(f"held out, before: {score(m, 256, limit, args.seed):.3f}", flush=True)
    for round in range(1, args.rounds + 1):
        problems = [p for p in (problem(chains) for _ in range(prompts)) for _ in range(group)]
        s = sample(m, [p for p, _ in problems], torch.rand(len(problems), limit, generator=numbers))
        rewards = torch.tensor([verify(a, t) for (_, a), t in zip(problems, s.texts, strict=True)])
        update(m, optimiser, s, advantages(rewards, group))
        print(f"round {round:3d}  reward {rewards.mean():+.3f}  {problems[0][0]}{s.texts[0]}", flush=True)
    print(f"held out, after: {score(m, 256, limit, args.seed):.3f}")


if __name__ == "__main__":
    main()
