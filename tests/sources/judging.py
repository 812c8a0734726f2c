"""A model by hand for tests of judges: it knows what to say to which question, and nothing else."""

from __future__ import annotations

import math

import numpy as np

from triloop.nn.tokenizer import word_tokenizer
from triloop.records import Completion, Prompt, completion_id
from triloop.sources.templates import Templates

_WORDS = "ask cmp think so red blue long rude polite yes no none A B own good bad fix it thanks sorry , . ; ? x y"
WORDS = tuple(_WORDS.split())

TEMPLATES = Templates(
    ask="ask {request} ; {response} ; {question} ?",
    think_ask="think ask {request} ; {response} ; {question} ?",
    ask_reasoned="think ask {request} ; {response} ; {question} ? {reasoning} so",
    compare="cmp {request} A {first} B {second} ; {principle} ?",
    think_compare="think cmp {request} A {first} B {second} ; {principle} ?",
    compare_reasoned="think cmp {request} A {first} B {second} ; {principle} ? {reasoning} so",
    answer="own {request}",
    referred="{request} own {reference}",
    critique="{request} ; {response} ; {principle} bad ?",
    revise="{request} ; {response} ; {critique} fix",
    follow="{request} ; {response} ;",
    yes=("yes",),
    no=("no",),
    none=(),
    first=("A",),
    second=("B",),
    tie=(),
    praise=("good",),
    fences=("ask", "cmp", "think"),
)


class Fake:
    """``says(prompt text) -> {word: probability}`` for scoring; ``writes(prompt text, index) -> text`` for sampling."""

    def __init__(self, says=lambda _: {}, writes=lambda *_: "", words=WORDS):
        self.tokenizer = word_tokenizer(words)
        self.says, self.writes = says, writes
        self.scored, self.sampled, self.tags = [], [], []

    def encode(self, prompt: Prompt):
        assert not prompt.turns
        return tuple(self.tokenizer.encode(prompt.text))

    def logprobs(self, items, *, temperature=1.0):
        self.scored.append(len(items))
        out = []
        for before, tokens in items:
            text = self.tokenizer.decode(list(before))
            said = self.says(text)
            if isinstance(said, Exception):
                raise said
            row = []
            for t in tokens:
                p = said.get(self.tokenizer.decode([t]), 0.0)
                row.append(math.nan if p is None else math.log(p) if p else -math.inf)
            out.append(np.array(row, dtype=np.float32))
        return out

    def sample(self, prompts, n, sampling, tag, **_):
        self.sampled.append(len(prompts))
        self.tags.append(tag)
        out = []
        for p in prompts:
            for i in range(n):
                said = self.writes(p.text, i)
                if isinstance(said, Exception):
                    raise said
                text, cut, _ = said.partition("|")
                tokens = tuple(self.tokenizer.encode(text))
                out.append(
                    Completion(
                        id=completion_id(tag.round, p.id, i),
                        prompt_id=p.id,
                        round=tag.round,
                        index=i,
                        prompt_tokens=self.encode(p),
                        tokens=tokens,
                        logps=(0.0,) * len(tokens),
                        mask=(True,) * len(tokens),
                        text=text,
                        finish="length" if cut else "stop",
                        policy_version=0,
                    )
                )
        return out


def ask(n=1, text="red"):
    return [Prompt(id=f"p{i}", text=text) for i in range(n)]
