"""A causal language model as transformers reads it, reduced to the little that a policy asks of it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from triloop.errors import ModelError
from triloop.nn.tokenizer import read_json

__all__ = ["CausalModel", "read_model"]

_CAUSAL = ("ForCausalLM", "LMHeadModel")
"""How transformers ends the names of causal language models."""


@dataclass(frozen=True)
class CausalModel:
    """A model that does not drop out: what it samples and what it learns from are one distribution."""

    module: Any
    """A ``transformers.PreTrainedModel`` in evaluation mode."""
    plain_head: bool
    """Whether logits are nothing but the output embedding of the last hidden state: then they can be made in slices. A
    model that scales or caps them gives whole logits, and these stand for its features."""

    @property
    def config(self) -> Any:
        return self.module.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return torch.device(self.module.device)

    @property
    def vocab_size(self) -> int:
        return int(self.module.get_output_embeddings().weight.shape[0])

    @property
    def max_positions(self) -> int | None:
        """None for models without a table of positions, such as Bloom."""
        limit = getattr(self.config, "max_position_embeddings", None)
        return None if limit is None else int(limit)

    @property
    def cache_bytes_per_token(self) -> int:
        """Of one row's keys and values."""
        c = self.config
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        return 2 * int(c.num_hidden_layers) * int(heads) * int(dim) * int(self.module.dtype.itemsize)

    def features(
        self,
        ids: Int[Tensor, "batch time"],
        *,
        attention: Int[Tensor, "batch span"] | None = None,
        positions: Int[Tensor, "batch time"] | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> tuple[Float[Tensor, "batch time width"], Any]:
        """What ``logits`` takes, for every token; and the key-value cache when asked for.

        ``attention`` is 1 where a column of cache and ids holds a token. ``positions`` are for padding on the left.
        """
        body = self.module.base_model if self.plain_head else self.module
        extra: dict[str, Any] = {"attention_mask": attention, "past_key_values": cache}
        if "position_ids" in inspect.signature(body.forward).parameters:
            extra["position_ids"] = positions
        given = {k: v for k, v in extra.items() if v is not None}
        out = body(input_ids=ids, use_cache=use_cache, return_dict=True, **given)
        return (out.last_hidden_state if self.plain_head else out.logits), (out.past_key_values if use_cache else None)

    def logits(self, features: Float[Tensor, "n width"]) -> Float[Tensor, "n vocab"]:
        if not self.plain_head:
            return features
        head = self.module.get_output_embeddings()
        logits: Tensor = head(features.to(head.weight.dtype))
        return logits

    def new_value_head(self) -> nn.Linear:
        """One value per position, starting at zero."""
        if not self.plain_head:
            raise ModelError(
                f"{self.config.model_type} gives no last hidden state for a value head; use an algorithm without one, such "
                "as grpo"
            )
        head = nn.Linear(int(self.module.get_output_embeddings().weight.shape[1]), 1, device=self.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def save(self, folder: Path) -> None:
        """Write config.json, generation_config.json and safetensors."""
        with _quiet():
            self.module.save_pretrained(folder)

    def twin(self) -> CausalModel:
        return CausalModel(copy.deepcopy(self.module), self.plain_head)

    def in_precision(self, dtype: torch.dtype) -> CausalModel:
        """A copy without gradient whose weights have another precision. Buffers, such as rotation angles, keep theirs."""
        twin = self.twin()
        for parameter in twin.module.parameters():
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(dtype)
        return twin


def read_model(folder: Path) -> CausalModel:
    """Read a Hugging Face directory in fp32. Raises ModelError with what is wrong with it."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ModelError(f"the transformers backend needs transformers ({error}): pip install 'triloop[hf]'") from error
    _check_folder(folder)
    try:
        with _quiet():
            module, found = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
    except Exception as error:  # its loaders raise OSError, ValueError, KeyError, RuntimeError, SafetensorError, ...
        raise ModelError(f"{folder} cannot be read by transformers: {error}") from error
    missing = sorted(map(str, found["missing_keys"]))
    if missing:
        raise ModelError(
            f"{folder}: the files lack {len(missing)} of the model's tensors, such as {', '.join(missing[:3])}. Weights "
            "and config.json belong to different models."
        )
    return _wrapped(module.eval(), folder)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError(f"model directory {folder} does not exist; give the path of a Hugging Face directory")
    names = [str(n) for n in read_json(folder / "config.json").get("architectures") or ()]
    if names and not any(n.endswith(_CAUSAL) for n in names):
        raise ModelError(
            f"{folder} holds {', '.join(names)}, which is no causal language model; give one that generates text"
        )


def _wrapped(module: Any, folder: Path) -> CausalModel:
    """The model, once it has shown that it keeps a cache and how its logits come about."""
    whole, plain = CausalModel(module, plain_head=False), CausalModel(module, plain_head=True)
    if "past_key_values" not in inspect.signature(module.forward).parameters:
        raise ModelError(
            f"{folder}: {type(module).__name__} keeps no key-value cache, and Triloop knows no other kind of state"
        )
    if module.base_model is module:
        return whole
    ids = torch.arange(min(4, whole.vocab_size), device=whole.device)[None]
    with torch.no_grad():
        expected, _ = whole.features(ids)
        sliced = plain.logits(plain.features(ids)[0][0])
    return plain if torch.allclose(expected[0], sliced, rtol=1e-4, atol=1e-4) else whole


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar while a directory is read or written: the screen belongs to the run."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
