"""transformers' ``generate`` at given shapes, for ``scaling.py``; run with an interpreter that has transformers.

Reads one JSON object a line (size, batch, length, vocab), answers with one: seconds of a generation of as many tokens, with
random weights, the key-value cache on, at temperature 1. A line without ``repeat`` makes the model anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from triloop.bench.case import GROUP, POSITIONS, PROMPT, SIZES
from triloop.bench.measuring import peak_bytes, reset_peak


def make(cell: dict[str, Any], dtype: torch.dtype) -> LlamaForCausalLM:
    s = SIZES[cell["size"]]
    config = LlamaConfig(
        vocab_size=cell["vocab"],
        hidden_size=s.hidden,
        intermediate_size=s.mlp,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.heads,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    torch.manual_seed(1234)
    return LlamaForCausalLM(config).to(dtype).eval()


@torch.no_grad()
def generate(model: LlamaForCausalLM, cell: dict[str, Any]) -> float:
    """Seconds; groups of rows share a prompt, as in Triloop's benchmark."""
    group = min(GROUP, cell["batch"])
    ids = torch.randint(4, 32, (cell["batch"] // group, PROMPT)).repeat_interleave(group, dim=0)
    n, t0 = cell["length"], time.perf_counter()
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=n,
        max_new_tokens=n,
    )
    seconds = time.perf_counter() - t0
    assert out.shape == (cell["batch"], PROMPT + n), f"{tuple(out.shape)} tokens"
    return seconds


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__)
    ap.add_argument("--threads", type=int, required=True)
    ap.add_argument("--bf16", action="store_true")
    options = ap.parse_args()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    model = None
    print(json.dumps({"ready": {"transformers": transformers.__version__}}), file=out, flush=True)
    for line in sys.stdin:
        cell = json.loads(line)
        if model is None or not cell.get("repeat"):
            model = make(cell, torch.bfloat16 if options.bf16 else torch.float32)
            reset_peak()
        seconds = generate(model, cell)
        print(json.dumps({"seconds": seconds, "peak_memory_bytes": peak_bytes()}), file=out, flush=True)


if __name__ == "__main__":
    main()
