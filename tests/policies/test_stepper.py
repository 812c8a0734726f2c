from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies.small import decoder, native, prompts
from triloop.kernels.native import available
from triloop.nn.decoder import Decoder
from triloop.nn.decoding import KernelDecoding, TorchDecoding
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.policies.stepper import NativeStepper

TAG = Tag(seed=5, round=1)


KINDS = [TorchDecoding, pytest.param(KernelDecoding, marks=pytest.mark.skipif(not available(), reason="not built"))]
each = pytest.mark.parametrize("kind", KINDS)


def counted(model: Decoder, kind: type[TorchDecoding | KernelDecoding]) -> tuple[NativeStepper, list[int]]:
    """A stepper, and how many cache rows each of its steps really computes."""
    stepper, rows = NativeStepper(model), list[int]()
    stepper.decoding = kind(model)
    inner = stepper.decoding.decode

    def decode(tokens: Tensor, positions: Tensor, span: int) -> Tensor:
        rows.append(len(tokens))
        return inner(tokens, positions, span)

    stepper.decoding.decode = decode  # type: ignore[method-assign]
    return stepper, rows


def logits_of(model: Decoder, sequence: list[int]) -> Tensor:
    with torch.no_grad():
        return model.logits_padded(torch.tensor([sequence]))[0, -1]


@each
def test_rows_with_one_history_are_one_until_they_part(kind: type[TorchDecoding | KernelDecoding]) -> None:
    model = decoder()
    stepper, rows = counted(model, kind)
    assert stepper.open(4, 12) == 4
    histories = [[4, 5], [4, 5], [4, 5], [6]]
    stepper.admit([tuple(h) for h in histories], range(4))
    draws = [[7, 7, 7, 8], [9, 9, 10, 8], [5, 6, 7, 8]]
    for tokens in draws:
        positions = [len(h) for h in histories]
        for history, token in zip(histories, tokens, strict=True):
            history.append(token)
        out = stepper.step(torch.tensor(tokens), torch.tensor(positions), max(positions) + 1)
        for row, history in zip(out, histories, strict=True):
            torch.testing.assert_close(row, logits_of(model, history), atol=1e-4, rtol=1e-4)
    assert rows == [2, 3, 4]


@each
def test_free_rows_make_room_and_gaps_are_closed(kind: type[TorchDecoding | KernelDecoding]) -> None:
    model = decoder()
    stepper, rows = counted(model, kind)
    stepper.open(6, 12)
    histories = [[4 + i] for i in range(6)]
    stepper.admit([tuple(h) for h in histories], range(6))
    alive = [1, 4, 5]
    for _ in range(2):
        positions = torch.tensor([len(h) if i in alive else 0 for i, h in enumerate(histories)])
        for i in alive:
            histories[i].append(9)
        out = stepper.step(torch.full((6,), 9), positions, int(positions.max()) + 1)
        for i in alive:
            torch.testing.assert_close(out[i], logits_of(model, histories[i]), atol=1e-4, rtol=1e-4)
    assert rows == [3, 3]
    stepper.keep(torch.tensor([1, 4, 5, 0]))
    fresh = stepper.admit([(11, 12)], [3])
    torch.testing.assert_close(fresh[0], logits_of(model, [11, 12]), atol=1e-4, rtol=1e-4)
    out = stepper.step(torch.tensor([9, 9, 9, 13]), torch.tensor([3, 3, 3, 2]), 4)
    torch.testing.assert_close(out[3], logits_of(model, [11, 12, 13]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(out[1], logits_of(model, [*histories[4], 9]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("slots", [3, 7, 64])
def test_every_sample_is_scored_as_it_was_drawn(slots: int) -> None:
    policy = native()
    done = policy.sample(prompts("1+2=", "345", "1+2=7"), 9, Sampling(max_tokens=12, slots=slots, top_k=3), TAG)
    assert len(done) == 27
    scores = policy.logprobs([(c.prompt_tokens, c.tokens) for c in done])
    for completion, logps in zip(done, scores, strict=True):
        torch.testing.assert_close(torch.tensor(completion.logps), torch.from_numpy(logps), atol=1e-4, rtol=1e-4)
