"""FedPAQ: unbiased, of known variance and size, and the same behind a fleet."""

from __future__ import annotations

import torch

from triloop.comms.schemes import Place
from triloop.comms.simulate import Fleet
from triloop.comms.updates import FedPAQ


def test_the_mean_of_many_rounds_is_the_mean_of_the_vectors() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 30)
    fleet = Fleet(scheme=FedPAQ(), workers=4)
    rounds = torch.stack([fleet.exchange({"w": x})["w"] for _ in range(1500)])
    norm = x.norm(dim=1, keepdim=True)
    variance = (norm * x.abs() - x.square()).sum(dim=0) / 16
    torch.testing.assert_close(rounds.mean(dim=0), x.mean(dim=0), atol=0.08, rtol=0)
    torch.testing.assert_close(rounds.var(dim=0), variance, atol=0.0, rtol=0.25)


def test_a_message_is_a_norm_and_five_codes_a_byte() -> None:
    x = torch.tensor([[3.0, 0.0, -4.0, 0.0, 0.0, 0.0]])
    place = Place(seed=0, step=0, layer="w", ranks=(0,), workers=1)
    message, _ = FedPAQ().send(place, x, torch.zeros(0), {})
    assert message.shape == (1, 4 + 2)
    found, _ = FedPAQ().receive(place, message, 6, torch.zeros(0), {})
    assert set(found.abs().tolist()) <= {0.0, 5.0} and float(found[1]) == 0.0


def test_zeros_stay_zeros() -> None:
    fleet = Fleet(scheme=FedPAQ(), workers=3)
    assert torch.equal(fleet.exchange({"w": torch.zeros(3, 7)})["w"], torch.zeros(7))
