"""llama.cpp and transformers say what the policy says, from the files that ``triloop export`` writes.

    python proofs/export.py [--llama PROGRAM] [--model DIR] [--tokens 200] [--steps 220] [--seed 0]

A model in full precision (stories260K) as GGUF in f32 and f16, and ternary decoders with widths of 256, trained here on
stories that the first one tells, with int8 activations per token and with llama.cpp's (int8-256): as f32, f16, tq1_0,
tq2_0, packed weights, plain weights and transformers' BitNet. For every GGUF file: the greedy continuation of each prompt
by llama.cpp beside ours, token by token; where they part, how far apart our two likeliest tokens were; and the differences
of logits over our own text.

llama.cpp is the Python binding (pip install llama-cpp-python) or, with ``--llama``, a built ``llama-simple``, of which only
the text can be compared. Without either, or without the model, nothing is written. Writes docs/proof/export.md and
export.json; the exit code is 1 when full precision differs, or a ternary text parts where our choice was no close one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from triloop.loops.build import describe_machine
from triloop.nn.decoder import Decoder, DecoderConfig
from triloop.nn.hf_io import save_pretrained
from triloop.nn.packing import packing
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.formats.bitnet import save_bitnet
from triloop.policies.formats.gguf_file import write_gguf
from triloop.policies.formats.packed import load_packed, save_packed
from triloop.policies.formats.weights import plain_decoder, weights_of
from triloop.policies.native import NativePolicy
from triloop.policies.protocol import Tag
from triloop.policies.sampling import Sampling
from triloop.records import Prompt
from triloop.ternary.config import TernaryConfig
from triloop.ternary.convert import ternarise

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = (
    "Once upon a time", "One day, a little boy named Tim", "Lily and her mom", "The big dog", "There was a red ball",
    "Tom was sad because", "The sun was", "A girl went to the park", "\"Can I have", "In the forest",
)  # fmt: skip
BLOCKS = ("tq1_0 + f32", "tq2_0 + f32", "tq2_0")
"""Types of the policy that rounds activations as llama.cpp does."""
CLOSE = 0.2
"""Two likeliest tokens whose logits differ by less are a close choice, where rounding may decide."""


class Llama(Protocol):
    """llama.cpp with one file."""

    def continued(self, prompt: str, tokens: int) -> tuple[str, list[int] | None]:
        """Greedy text after ``prompt``, and its tokens where they can be had."""
        ...

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any] | None:
        """Of every position, or None where they cannot be had."""
        ...


class Binding:
    """The package llama_cpp; keys and values in fp32, one thread."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(path), n_ctx=512, verbose=False, n_threads=1, n_threads_batch=1, type_k=0, type_v=0, logits_all=True
        )

    def continued(self, prompt: str, tokens: int) -> tuple[str, list[int] | None]:
        m = self.model
        ids = m.tokenize(prompt.encode(), add_bos=True, special=True)
        m.reset()
        m.eval(ids)
        made: list[int] = []
        while len(made) < tokens:
            best = int(np.argmax(m.scores[m.n_tokens - 1]))
            if self._ends(best):
                break
            made.append(best)
            m.eval([best])
        return m.detokenize(made, prev_tokens=ids).decode("utf-8", "replace"), made

    def _ends(self, token: int) -> bool:
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(llama_cpp.llama_model_get_vocab(self.model.model), token))

    def logits(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        self.model.reset()
        self.model.eval(list(ids))
        return np.array(self.model.scores[: len(ids)])


@dataclass(frozen=True)
class Program:
    """A built llama-simple: text only, keys and values in its own precision (f16)."""

    program: str
    path: Path

    def continued(self, prompt: str, tokens: int) -> tuple[str, list[int] | None]:
        words = [self.program, "-m", str(self.path), "-n", str(tokens), prompt]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
        return done.stdout.partition(prompt)[2].removesuffix("\n"), None

    def logits(self, ids: Sequence[int]) -> None:
        return None


def opened(path: Path, program: str | None) -> Llama:
    return Program(program, path) if program else Binding(path)


# -------------------------------------------------------------------- the ternary policy


def trained(teacher: NativePolicy, options: argparse.Namespace) -> dict[str, Decoder]:
    """Ternary decoders (absmean, one scale for a matrix) by their activations: int8 and int8-256 have read stories of the
    teacher's, none has the weights of int8."""
    stories = told(teacher, options.stories, options.seed)
    made = {name: student(teacher, name, options.seed) for name in ("int8", "none", "int8-256")}
    for name in ("int8", "int8-256"):
        loss = taught(made[name], stories, options)
        print(f"ternary policy, activations {name}: last loss {loss:.3f} nats a token", flush=True)
    made["none"].load_state_dict(made["int8"].state_dict())
    return {name: decoder.requires_grad_(False).eval() for name, decoder in made.items()}


def student(teacher: NativePolicy, activations: str, seed: int) -> Decoder:
    config = DecoderConfig(
        vocab_size=teacher.decoder.config.vocab_size, hidden_size=256, intermediate_size=512, num_layers=3, num_heads=4,
        num_kv_heads=2, head_dim=64, norm_eps=1e-5, max_positions=512,
    )  # fmt: skip
    decoder = Decoder(config).initialise(seed)
    ternarise(decoder, TernaryConfig(activations=activations))
    return decoder


def taught(decoder: Decoder, stories: Sequence[Sequence[int]], options: argparse.Namespace) -> float:
    """The last step's loss."""
    optimiser = torch.optim.AdamW(decoder.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    draw = np.random.default_rng(options.seed)
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20, 1.05 - step / options.steps)
        batch = [stories[int(i)] for i in draw.integers(len(stories), size=12)]
        ids = torch.tensor([i for s in batch for i in s])
        hidden = decoder.packed(ids, packing([len(s) for s in batch], ids.device))
        last = torch.tensor([len(s) for s in batch]).cumsum(0) - 1
        targets = ids.roll(-1).index_fill(0, last, -100)
        loss = F.cross_entropy(decoder.logits(hidden), targets)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimiser.step()
    return float(loss.detach())


def told(teacher: NativePolicy, count: int, seed: int) -> list[list[int]]:
    sampling = Sampling(max_tokens=160, temperature=0.8)
    drawn = teacher.sample([Prompt(id="story", text="")], count, sampling, Tag(seed=seed, round=0, purpose="train"))
    return [[*c.prompt_tokens, *c.tokens] for c in drawn]


# -------------------------------------------------------------------- comparisons


def compared(policy: NativePolicy, llama: Llama, tokens: int) -> dict[str, Any]:
    """Of every prompt: how many of our greedy tokens llama.cpp's text agrees with, and how close a choice it was there."""
    prompts = [Prompt(id=str(i), text=text) for i, text in enumerate(PROMPTS)]
    drawn = policy.sample(prompts, 1, Sampling(max_tokens=tokens, temperature=0.0), Tag(seed=0, round=0))
    rows = []
    for prompt, ours in zip(PROMPTS, drawn, strict=True):
        theirs, chosen = llama.continued(prompt, tokens)
        before = list(ours.prompt_tokens)
        ids = [*before, *ours.tokens]
        agreed = agreement(policy.tokenizer, before, ours.tokens, theirs, chosen)
        logits = of(policy.decoder, ids)
        row = {"prompt": prompt, "tokens": len(ours.tokens), "agreed": agreed, "same": ours.text == theirs}
        if not row["same"]:
            # Text alone may show the parting some tokens late: two tokens can begin alike.
            first = agreed if chosen is not None else max(agreed - 3, 0)
            best = np.sort(logits[len(before) + first - 1 : len(before) + agreed], 1)
            row["margin"] = float((best[:, -1] - best[:, -2]).min())
        other = llama.logits(ids)
        if other is not None:
            apart = np.abs(other - logits).max(1)
            row |= {"logits": float(apart.max()), "median": float(np.median(apart))}
            row["likeliest"] = float((other.argmax(1) == logits.argmax(1)).mean())
        rows.append(row)
    return {"rows": rows, "same": sum(r["same"] for r in rows), "of": len(rows)}


def agreement(
    tokenizer: Tokenizer, before: Sequence[int], ours: Sequence[int], theirs: str, chosen: Sequence[int] | None
) -> int:
    """Leading tokens of ours that llama.cpp chose too, or that its text begins with where its tokens are unknown."""
    good, ends = 0, tokenizer.eos_ids
    while good < len(ours) and ours[good] not in ends:
        text = tokenizer.continuation(before, ours[: good + 1])
        alike = theirs.startswith(text) if chosen is None else list(chosen[: good + 1]) == list(ours[: good + 1])
        if not alike:
            return good
        good += 1
    return len(ours)


def of(decoder: Decoder, ids: Sequence[int]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return decoder.logits_padded(torch.tensor([list(ids)]))[0].numpy()


def transformed(folder: Path, decoder: Decoder, ids: Sequence[int]) -> dict[str, float] | str:
    """Differences of logits to transformers', as shares of the largest logit; or why there are none."""
    try:
        import transformers
    except ImportError:
        return "transformers is not installed"
    transformers.logging.disable_progress_bar()
    try:
        with torch.compiler.set_stance("force_eager"), torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            theirs = model(torch.tensor([list(ids)])).logits[0].numpy()
    except ImportError as error:
        return str(error).partition("\n")[0]
    ours = of(decoder, ids)
    apart = np.abs(theirs - ours).max(1) / np.abs(ours).max()
    return {"largest": float(apart.max()), "median": float(np.median(apart)), "above": float((apart > 1e-5).mean())}


def files(policy: NativePolicy, types: Sequence[str], name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each GGUF type written, run and compared; ``tq2_0 + f32`` has embeddings and head in f32."""
    rows = []
    for kind in types:
        type, _, rest = kind.partition(" + ")
        path = options.work / f"{name}-{type}-{rest or 'own'}.gguf"
        report = write_gguf(path, policy.decoder, policy.tokenizer, type=type, rest=rest or None, name=name)
        found = compared(policy, opened(report.path, options.llama), options.tokens)
        facts = {"policy": name, "type": kind, "bytes": report.bytes, "bits": report.bits, "notes": list(report.notes)}
        rows.append(facts | found)
        print(f"{name} {kind}: {report.bytes:,} bytes, {found['same']} of {found['of']} texts the same", flush=True)
    return rows


def others(policy: NativePolicy, name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Packed weights, plain weights and BitNet of a ternary policy."""
    decoder, words, at = policy.decoder, policy.tokenizer, options.work
    ids = words.encode("Once upon a time there was a little girl. She liked cats and a big red ball.")
    report = save_packed(at / f"{name}-packed", decoder, words)
    again, _ = load_packed(at / f"{name}-packed")
    found: dict[str, Any] = {
        "policy": name,
        "packed bytes": report.bytes,
        "packed bits": report.bits,
        "packed logits equal": bool(np.array_equal(of(again, ids), of(decoder, ids))),
    }
    activations = weights_of(decoder).activations
    if activations == "none":
        save_pretrained(at / f"{name}-hf", plain_decoder(weights_of(decoder)), words)
        found["transformers, plain weights"] = transformed(at / f"{name}-hf", decoder, ids)
    elif activations == "int8":
        save_bitnet(at / f"{name}-bitnet", decoder, words)
        found["transformers, BitNet"] = transformed(at / f"{name}-bitnet", decoder, ids)
    return found


# -------------------------------------------------------------------- the page


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What does not hold."""
    wrong = [f"{r['policy']} {r['type']}: a text differs" for r in rows if r["exact"] and r["same"] < r["of"]]
    for r in rows:
        far = [x["prompt"] for x in r["rows"] if x.get("margin", 0.0) > CLOSE]
        wrong += [f"{r['policy']} {r['type']}: parts at a choice that was not close, after {p!r}" for p in far]
    return wrong


def page(f: Mapping[str, Any]) -> str:
    lines = ["# llama.cpp and transformers say what the policy says", ""]
    lines.append("**Does not hold.** " + "; ".join(f["wrong"]) if f["wrong"] else f"**Holds.** {f['summary']}")
    lines += [
        "",
        f"`python proofs/export.py`, {f['date']}: {f['machine']}; llama.cpp by {f['llama']}; {f['seconds']:.0f} s.",
    ]
    lines += [
        "",
        f"Greedy continuations of {len(PROMPTS)} prompts, up to {f['tokens']} tokens each. *Agree*: our tokens before "
        "the first that differs, over all prompts. *Margin*: how far our two likeliest logits lay apart where the "
        "texts part. *Logits*: the largest difference over our own texts, and the largest at a position in the middle of "
        "all; *likeliest*: positions where both have the same best token. *+ f32*: embeddings and output head in f32, in "
        "f16 without.",
        "",
    ]
    head = "| policy | type | bytes | bits a weight of the linears | same text | agree | margins "
    lines += [head + "| logits | middle | likeliest |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", *(_row(r) for r in f["files"])]
    lines += ["", *f["about"], "", "| ternary policy | form | bytes | bits a weight | compared with ours |"]
    lines += ["| --- | --- | --- | --- | --- |", *(line for o in f["others"] for line in _other(o))]
    return "\n".join([*lines, ""])


def _row(r: Mapping[str, Any]) -> str:
    rows = r["rows"]
    agree = f"{sum(x['agreed'] for x in rows)} of {sum(x['tokens'] for x in rows)}"
    margins = ", ".join(f"{x['margin']:.3f}" for x in rows if "margin" in x) or "–"
    logits = max((x["logits"] for x in rows if "logits" in x), default=None)
    likeliest = [x["likeliest"] for x in rows if "likeliest" in x]
    share = f"{100 * sum(likeliest) / len(likeliest):.2f} %" if likeliest else "–"
    middle = [x["median"] for x in rows if "median" in x]
    shown = "– | –" if logits is None else f"{logits:.2g} | {float(np.median(middle)):.2g}"
    head = f"| {r['policy']} | {r['type']} | {r['bytes']:,} | {r['bits']:.4g} | {r['same']} of {r['of']} "
    return f"{head}| {agree} | {margins} | {shown} | {share} |"


def _other(o: Mapping[str, Any]) -> list[str]:
    equal = "logits equal, bit for bit" if o["packed logits equal"] else "**logits differ**"
    lines = [f"| {o['policy']} | packed | {o['packed bytes']:,} | {o['packed bits']:.4g} | {equal} |"]
    for form in ("transformers, plain weights", "transformers, BitNet"):
        if form in o:
            value = o[form]
            said = value
            if not isinstance(value, str):
                said = f"logits differ by {value['median']:.1e} of the largest (median over positions), at most "
                said += f"{value['largest']:.1e}; {100 * value['above']:.0f} % of positions by more than 1e-5"
            lines.append(f"| {o['policy']} | {form} | | | {said} |")
    return lines


ABOUT = [
    "llama.cpp rounds activations: to half precision before a product with F16 weights, to int8 in blocks of 256 inputs "
    "(Q8_K) before one with TQ1_0 or TQ2_0, not at all with F32. A policy trained with activations int8-256 rounds them in "
    "the same blocks by the same operations, with scales of weights in half precision as in the file: with embeddings and "
    "head in f32 both compute the same but for fp32 rounding. So it is in f32 for unquantised activations (none). "
    "Anything else is another rounding of the same codes, and greedy text may part where two tokens are almost equally "
    "likely, as that of stories260K in f16 does, whose activations we do not round.",
    "",
    "Between the products stands fp32, summed in another order, here as beside transformers' BitLinear, which computes our "
    "whole numbers too. Logits then differ by 1e-6, until an activation lies so near the middle of two int8 codes that "
    "it falls to the other side: that moves logits by far more than the rounding that caused it, of all later tokens too.",
]


def main() -> int:
    options = arguments()
    if not options.model.is_dir():
        print(f"skipped: no model at {options.model}; give --model DIR, a Llama-shaped Hugging Face directory")
        return 0
    if options.llama is None and not _binding():
        print("skipped: no llama.cpp here; pip install llama-cpp-python, or give --llama PATH of a built llama-simple")
        return 0
    torch.set_num_threads(1)
    start, rows, more = time.perf_counter(), [], []
    teacher = NativePolicy.load(options.model, precision=torch.float32)
    rows += [r | {"exact": r["type"] == "f32"} for r in files(teacher, ("f32", "f16"), options.model.name, options)]
    for activations, decoder in trained(teacher, options).items():
        name = f"ternary, {activations}"
        policy = NativePolicy(decoder, teacher.tokenizer, precision=torch.float32)
        types = BLOCKS if activations == "int8-256" else ("f32", "f16", "tq1_0", "tq2_0")
        made = files(policy, types, name.replace(", ", "-"), options)
        rows += [r | {"policy": name, "exact": activations == "none" and r["type"] == "f32"} for r in made]
        more.append(others(policy, name.replace(", ", "-"), options) | {"policy": name})
    wrong = verdict(rows) + [f"packed {o['policy']}: logits differ" for o in more if not o["packed logits equal"]]
    facts = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "llama": "llama-simple" if options.llama else _version(),
        "seconds": time.perf_counter() - start,
        "tokens": options.tokens,
        "wrong": wrong,
        "summary": _summary(rows),
        "about": ABOUT,
        "files": rows,
        "others": more,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "export.md").write_text(page(facts), encoding="utf-8")
    (options.out / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print((options.out / "export.md").read_text(encoding="utf-8"))
    return int(bool(wrong))


def machine() -> str:
    known = describe_machine(1, torch.float32, torch.device("cpu"))
    return f"{known['processor']}, one thread, {platform.system()}, Python {known['python']}, torch {known['torch']}"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    plain = [r for r in rows if not r["policy"].startswith("ternary")]
    count = [f"{r['same']} of {r['of']} in {r['type']}" for r in plain]
    full = f"Of the greedy texts of {plain[0]['policy']} {' and '.join(count)} are the same"
    blocks = [r for r in rows if r["type"] in BLOCKS[:2]]
    packed = [r for r in rows if r["type"].startswith("tq") and r not in blocks]
    margins = [x["margin"] for r in packed for x in r["rows"] if "margin" in x]
    rest = f"; where they part, the logits of our two likeliest tokens lay within {max(margins):.2g}" if margins else ""
    same = f"of a ternary policy trained with llama.cpp's activations and written with --rest f32 {_counted(blocks)}"
    return f"{full}, {same}, of others in tq1_0 and tq2_0 {_counted(packed)}{rest}."


def _counted(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"{sum(r['same'] for r in rows)} of {sum(r['of'] for r in rows)}"


def _binding() -> bool:
    try:
        import llama_cpp  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def _version() -> str:
    import llama_cpp

    return f"llama-cpp-python {llama_cpp.__version__}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", metavar="PROGRAM", help="a built llama-simple, in place of the Python binding")
    parser.add_argument("--model", type=Path, default=ROOT.parent / "shared" / "data" / "models" / "stories260K")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--steps", type=int, default=220)
    parser.add_argument("--stories", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.mkdtemp(prefix="triloop-export-")))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "proof")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
