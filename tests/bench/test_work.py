"""FLOPs and bytes against sums worked by hand."""

from __future__ import annotations

import pytest
import torch

from triloop.bench.case import SIZES
from triloop.bench.limits import Floor, Limits, floor
from triloop.bench.model import config_of, random_prompts, tokenizer_of
from triloop.bench.work import Samples, Work, attention_flops, decoding, head_flops, learning, prefill, token_flops
from triloop.nn.decoder import Decoder, DecoderConfig

TINY = DecoderConfig(
    vocab_size=10, hidden_size=4, intermediate_size=6, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=2
)
# One layer, one token: q 4 x 4, k and v 4 x 2 each, out 4 x 4, gate and up 4 x 6 each, down 6 x 4: 16+8+8+16+48+24 = 120
TOKEN = 2 * 2 * 120
HEAD = 2 * 4 * 10


def test_a_token() -> None:
    assert token_flops(TINY) == TOKEN
    assert head_flops(TINY) == HEAD


def test_attention_grows_with_the_position() -> None:
    # A key met: 2 heads x 2 numbers, a multiply-add each in scoring and in mixing, 2 layers: 4 * 2 * 2 * 2 = 32 FLOPs
    assert attention_flops(TINY, 0, 3) == 32 * (1 + 2 + 3)
    assert attention_flops(TINY, 3, 5) == 32 * (4 + 5)


def test_prompts_are_read_once_a_group() -> None:
    s = Samples(prompts=(3,), group=2, length=4)
    work = prefill(TINY, s, itemsize=4)
    assert work.flops == 3 * TOKEN + 32 * 6 + HEAD
    # All matrices once (2 layers x 120, head 40), and for each of 3 tokens a key and a value of 2 numbers in 2 layers
    assert work.bytes == 4 * (2 * 120 + 40 + 3 * 8)


def test_every_token_but_the_last_is_a_step() -> None:
    s = Samples(prompts=(3,), group=2, length=4)
    work = decoding(TINY, s, itemsize=2)
    # Steps at positions 3, 4, 5, of two rows
    assert work.flops == 2 * (3 * (TOKEN + HEAD) + 32 * (4 + 5 + 6))
    # Three times the weights; each row reads 3, 4, 5 old entries and reads and writes its own
    assert work.bytes == 2 * (3 * 280 + 2 * (3 + 4 + 5 + 3 * 2) * 8)


def test_learning_is_three_forward_passes() -> None:
    s = Samples(prompts=(3,), group=2, length=4)
    work = learning(TINY, s, itemsize=4, passes=2)
    prompt = 3 * TOKEN + 32 * 6
    own = 3 * TOKEN + 4 * HEAD + 32 * (4 + 5 + 6)
    assert work.flops == 3 * (prompt + 2 * own)
    assert work.bytes == 2 * 280 * (4 + 4 + 4) + TINY.parameters * 28


def test_one_token_needs_no_step() -> None:
    assert decoding(TINY, Samples(prompts=(3, 5), group=2, length=1), itemsize=4) == Work(flops=0, bytes=0)


def test_the_count_is_what_torch_counts() -> None:
    """torch's own counter sees the products of a real pass; attention apart, which it counts without the causal half."""
    from torch.utils.flop_counter import FlopCounterMode

    # in bf16: torch does not see the kernels that multiply in fp32
    decoder = Decoder(config_of("0.2m")).initialise(0).requires_grad_(False).to(torch.bfloat16)
    with FlopCounterMode(display=False) as counter:
        decoder.prefill(torch.arange(4, 12)[None], torch.tensor([8]))
    counted = {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}
    products = sum(flops for name, flops in counted.items() if "attention" not in name and "bmm" not in name)
    assert products == 8 * token_flops(decoder.config) + head_flops(decoder.config)


def test_the_floor_is_the_larger_of_two() -> None:
    slow_memory = floor(Work(flops=100.0, bytes=50.0), rate=10.0, bandwidth=1.0)
    assert slow_memory == Floor(products=10.0, memory=50.0)
    assert slow_memory.seconds == 50.0
    assert (slow_memory + Floor(products=90.0, memory=1.0)).seconds == 100.0


def test_the_higher_limit_counts() -> None:
    one, two = Limits(decode=1, learn=5, bandwidth=3), Limits(decode=2, learn=4, bandwidth=3)
    assert one.best(two) == Limits(decode=2, learn=5, bandwidth=3)


@pytest.mark.parametrize("size", SIZES)
def test_sizes_have_about_the_parameters_of_their_name(size: str) -> None:
    named = float(size.removesuffix("m")) * 1e6
    assert config_of(size).parameters == pytest.approx(named, rel=0.1)


@pytest.mark.parametrize("vocab", [64, 65, 300])
def test_a_vocabulary_of_any_size(vocab: int) -> None:
    tokenizer = tokenizer_of(vocab)
    assert len(tokenizer.surfaces) == vocab
    prompts = random_prompts(20)
    assert len({p.text for p in prompts}) == 20
    assert all(len(tokenizer.encode(p.text)) == 8 for p in prompts)


def test_packed_weights_take_two_bits() -> None:
    s = Samples(prompts=(3,), group=1, length=3)
    plain, packed = decoding(TINY, s, itemsize=4), decoding(TINY, s, itemsize=4, packed=True)
    assert packed.flops == plain.flops
    assert plain.bytes - packed.bytes == 2 * (4 - 0.25) * token_flops(TINY) / 2


def test_an_int8_head_takes_a_byte_a_weight() -> None:
    s = Samples(prompts=(3,), group=1, length=3)
    packed, bytes_ = (decoding(TINY, s, itemsize=4, packed=True, head=h) for h in (0, 1))
    assert packed.flops == bytes_.flops
    assert packed.bytes - bytes_.bytes == 2 * (4 - 1) * head_flops(TINY) / 2
    assert prefill(TINY, s, 4, True).bytes - prefill(TINY, s, 4, True, 1).bytes == 3 * head_flops(TINY) / 2
