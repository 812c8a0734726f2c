"""The policies that the contract is asked of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from policies import small
from triloop.policies.protocol import Policy


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of a small GPT-2."""
    return small.foreign_directory(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(params=small.BACKENDS)
def make(request: pytest.FixtureRequest) -> small.Make:
    """A new policy of each backend; one with the same weights at every call."""
    if request.param == "native":
        return small.native
    if request.param == "native+lora":
        return small.native_lora
    folder = request.getfixturevalue("gpt2")

    def foreign(**settings: Any) -> Policy:
        from triloop.policies.transformers_backend import load_transformers

        return load_transformers(folder, **settings)

    return foreign
