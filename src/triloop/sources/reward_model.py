"""A reward model: a network that learns from judgements to give every (prompt, text) a score, and judges by it.

    score(x, y) = direction . (head(state after the last token of x, y, end) + w . features(x, y))

It is trained by the same learner as a policy, from pairs with ties, margins and soft labels, from ratings, attributes and
marked passages (``reward_examples``), and it is a ``Judge`` and a ``PairJudge``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from triloop.errors import ConfigError, DataError, ModelError
from triloop.feedback.kinds import Pair, Scalar, Spans, write
from triloop.learn.batch import TokenOutputs
from triloop.nn.decoder import Decoder
from triloop.nn.tokenizer import Tokenizer
from triloop.policies.devices import exact
from triloop.policies.learner import Learner, LearnerSettings
from triloop.policies.native import NativePolicy
from triloop.policies.ternary import load_directory, save_directory
from triloop.records import Feedback, Prompt
from triloop.sources.reward_audit import Audit, audit_scores
from triloop.sources.reward_config import RewardConfig, RewardTraining
from triloop.sources.reward_examples import RewardExample, RewardPair
from triloop.sources.reward_features import Features, SparseRows
from triloop.sources.reward_network import RewardNetwork, bare_copy
from triloop.sources.reward_read import arrays, chances, declared, marked, sigmoid, tensors
from triloop.sources.reward_table import Encoder, RewardBatch, Table, flat, table_of
from triloop.sources.reward_training import Trained, reward_loss, split_by_prompt, text_outputs, tie_nu, train

__all__ = ["RewardModel"]

_CALIBRATION = 512
"""Most texts that the mean score of ``learn`` is taken over."""


class RewardModel:
    """Scores, judges, compares, and learns. Its decoder is its own: give it a copy where a policy's is meant.

    ``features`` add a part that is linear in what the caller knows; they are fitted on the first examples learned from.
    What cannot be scored (features that fail, a score that is no number) is NaN from ``score`` and a failure from judging.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        config: RewardConfig | None = None,
        *,
        features: Features | None = None,
        training: RewardTraining | None = None,
        precision: torch.dtype = torch.float32,
        name: str = "reward",
    ) -> None:
        self.config, self.training, self.name = config or RewardConfig(), training or RewardTraining(), name
        self.tokenizer, self.features, self.precision = tokenizer, features, precision
        self.network = RewardNetwork(decoder, self.config, features.size if features is not None else 0, precision)
        settings = LearnerSettings(optim=self.training.optim, precision=precision, entropy=False)
        self.learner = Learner(self.network, settings)
        self.encoder = Encoder(
            tokenizer=tokenizer,
            positions=decoder.config.max_positions,
            vocab_size=decoder.config.vocab_size,
            per_token=self.config.per_token,
            template=self.config.template,
        )
        if self.config.answers is not None:
            self.network.start_as(*(_only_token(tokenizer, word) for word in self.config.answers))
        self.origin = 0.0
        """Score that counts as neutral: the mean of a calibration set."""
        self.tie_nu: float | None = self.config.tie_nu
        self.trainings = 0
        """Times that it has learned."""

    @classmethod
    def load(cls, path: str | Path, config: RewardConfig | None = None, **options: Any) -> RewardModel:
        """On the weights of a policy's directory. ``options`` as of the constructor."""
        decoder, tokenizer = load_directory(path)
        return cls(bare_copy(decoder), tokenizer, config, **options)

    @classmethod
    def of(cls, policy: NativePolicy, config: RewardConfig | None = None, **options: Any) -> RewardModel:
        """On a copy of a policy's weights as they are now."""
        return cls(bare_copy(policy.decoder), policy.tokenizer, config, **options)

    # ------------------------------------------------------------------ scoring

    def score(
        self, prompts: Sequence[Prompt], texts: Sequence[str], *, direction: Mapping[str, float] | None = None
    ) -> Float[np.ndarray, " texts"]:
        """One number per (prompt, text), in nats of the odds of being preferred; NaN where there is none.

        ``direction`` weighs outputs by name instead of the configured scalarisation: ``{"polite": 1.0, "score": 0.5}``.
        """
        told, _ = self.outputs(prompts, texts)
        return told @ self._direction(direction)

    def scored(
        self, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> tuple[Float[np.ndarray, " texts"], dict[int, str]]:
        """``score``, and why the texts without one have none (by position)."""
        told, failures = self.outputs(prompts, texts)
        return told @ self._direction(None), failures

    def outputs(
        self, prompts: Sequence[Prompt], texts: Sequence[str]
    ) -> tuple[Float[np.ndarray, "texts outputs"], dict[int, str]]:
        """Every output (``config.names``) of every text, NaN for those that fail, and why they do."""
        failures: dict[int, str] = {}
        told = np.full((len(texts), len(self.config.names)), np.nan)
        try:
            told[:] = self._told(prompts, texts, failures)
        except Exception as error:  # noqa: BLE001 - a text that breaks the forward pass fails alone
            if len(texts) == 1:
                return told, {0: f"{type(error).__name__}: {error}"}
            for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
                told[i : i + 1], alone = self.outputs([prompt], [text])
                failures.update((i, why) for why in alone.values())
        for i in np.flatnonzero(~np.isfinite(told).all(axis=1)).tolist():
            failures.setdefault(i, f"the score is {told[i, 0]}")
            told[i] = np.nan
        return told, failures

    def judge(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Feedback]:
        """``scalar`` feedback: 2 sigmoid(score - origin) - 1, with the raw score and the attributes as breakdown."""
        told, failures = self.outputs(prompts, texts)
        scores = told @ self._direction(None)
        out = []
        for i, score in enumerate(scores.tolist()):
            if i in failures:
                out.append(self._failed(failures[i], "scalar"))
                continue
            parts = {"score": score} | dict(zip(self.config.attributes, told[i, 1:].tolist(), strict=True))
            value = 2.0 * sigmoid(score - self.origin) - 1.0
            out.append(write(Scalar(value), source=self.name, breakdown=parts))
        return out

    def compare(self, prompts: Sequence[Prompt], firsts: Sequence[str], seconds: Sequence[str]) -> list[Feedback]:
        """``pair`` feedback: the likeliest of first better, tie and second better, under the configured model of ties.

        The strength is P(first) - P(second) without its sign, the confidence the probability of what is said, and the
        breakdown holds all three probabilities. Without a model of ties only equal scores tie.
        """
        scores, failures = self.scored([*prompts, *prompts], [*firsts, *seconds])
        n = len(prompts)
        chance = chances(scores[:n] - scores[n:], self.config.ties, self.tie_nu)
        out = []
        for i in range(n):
            why = failures.get(i) or failures.get(n + i)
            if why is not None:
                out.append(self._failed(why, "pair"))
                continue
            preference, strength, confidence = declared(chance[i])
            parts = dict(zip(("first", "tie", "second"), chance[i].tolist(), strict=True))
            said = Pair(preference, strength)
            out.append(write(said, source=self.name, confidence=confidence, breakdown=parts))
        return out

    def token_scores(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[NDArray[np.float64]]:
        """The output of every token of each text, its end token last. ConfigError unless ``token_level``."""
        if not self.config.token_level:
            raise ConfigError("this reward model has no output per token; build it with RewardConfig(token_level=True)")
        found: list[NDArray[np.float64]] = []
        rows = self.encoder.rows(prompts, texts)
        for outputs, batch in self._forward(RewardBatch.of(rows, range(len(rows)), range(len(rows)))):
            assert outputs.heads is not None
            for row, tokens in zip(outputs.heads[..., -1], batch.tokens, strict=True):
                found.append(row[1 : len(tokens)].double().cpu().numpy())
        return found

    def mark(self, prompts: Sequence[Prompt], texts: Sequence[str], *, above: float = 0.5) -> list[Feedback]:
        """``spans`` feedback: runs of tokens whose output is beyond ``above`` on either side. ConfigError as above."""
        scores = self.token_scores(prompts, texts)
        out = []
        for text, of_tokens in zip(texts, scores, strict=True):
            offsets = self.encoder.offsets(text)
            seen = min(len(offsets), len(of_tokens) - 1)  # the beginning of a long text was cut off
            spans = marked(of_tokens[len(of_tokens) - 1 - seen : -1], offsets[len(offsets) - seen :], above)
            out.append(write(Spans(spans), source=self.name))
        return out

    # ------------------------------------------------------------------ learning

    def learn(self, examples: Sequence[RewardExample], *, training: RewardTraining | None = None) -> Trained:
        """Learn from these, stop by the part of them that is held out, and take their mean score as the new origin.

        Weights go on from where they are; features and the tie parameter are settled by the first examples ever learned.
        Examples without features are left out and named. DataError when none is left.
        """
        how = training or self.training
        learned, held = split_by_prompt(examples, how.held_out, how.seed)
        self._settle(learned)
        tables: list[Table] = []
        wrong: list[str] = []
        for part in (learned, held):
            table, failures = table_of(part, self.encoder, self.features, self.config)
            tables.append(table)
            wrong += failures.values()
        mine, theirs = tables
        if not mine.examples:
            raise DataError(f"a reward model needs examples to learn from; got none{': ' + wrong[0] if wrong else ''}")
        nu = self.tie_nu or 1.0
        losses = (
            reward_loss(self.network, mine, nu=nu, ridge_over=mine.examples),
            reward_loss(self.network, theirs, nu=nu),
        )
        done = train(self.learner, losses, (mine, theirs), how, taken=self.trainings)
        self.trainings += 1
        self._centre(theirs if theirs.examples else mine)
        return replace(done, failures=tuple(wrong))

    def calibrate(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> float:
        """Take the mean score of these texts as the origin of ``judge``; returns it. DataError when none has a score."""
        scores = self.score(prompts, texts)
        good = scores[np.isfinite(scores)]
        if not len(good):
            raise DataError(f"none of {len(texts)} texts has a score; the origin cannot be their mean")
        self.origin = float(good.mean())
        return self.origin

    def audit(self, pairs: Sequence[RewardPair]) -> Audit:
        """Accuracy, calibration and length bias on judged pairs that it has not learned from."""
        prompts = [e.prompt for e in pairs]
        scores = self.score([*prompts, *prompts], [e.first for e in pairs] + [e.second for e in pairs])
        return audit_scores(pairs, scores[: len(pairs)], scores[len(pairs) :])

    # ------------------------------------------------------------------ state

    def frozen(self) -> RewardModel:
        """A copy that stays as it is when this one learns."""
        twin = RewardModel(
            bare_copy(self.network.decoder),
            self.tokenizer,
            self.config,
            features=self.features,
            training=self.training,
            precision=self.precision,
            name=self.name,
        )
        twin._take(copy.deepcopy(self._state()))
        twin.network.requires_grad_(False)
        return twin

    def save_state(self, folder: Path) -> None:
        """Everything that judging, and learning on, need; ``trunk`` in it is a Hugging Face directory."""
        folder.mkdir(parents=True, exist_ok=True)
        save_directory(folder / "trunk", self.network.decoder, self.tokenizer)
        torch.save(self._state() | {"config": asdict(self.config)}, folder / "reward.pt")

    def load_state(self, folder: Path) -> None:
        """Go on from what ``save_state`` of a model like this one wrote. ModelError where it was another kind."""
        state = torch.load(folder / "reward.pt", map_location="cpu", weights_only=True)
        if state["config"] != asdict(self.config):
            raise ModelError(
                f"{folder} holds a reward model of another form, {state['config']}; build it as it was saved"
            )
        self.network.decoder.load_state_dict(load_directory(folder / "trunk")[0].state_dict())
        self._take(state)

    def _state(self) -> dict[str, Any]:
        heads = {k: v for k, v in self.network.state_dict().items() if not k.startswith("decoder.")}
        return {
            "heads": heads,
            "features": None if self.features is None else tensors(self.features.state()),
            "origin": self.origin,
            "tie_nu": self.tie_nu,
            "trainings": self.trainings,
            "version": self.learner.version,
        }

    def _take(self, state: Mapping[str, Any]) -> None:
        if (self.features is None) != (state["features"] is None):
            raise ModelError("the saved reward model and this one differ in whether they have features; give the same")
        if self.features is not None:
            self.features = self.features.restored(arrays(state["features"]))
        self.network.load_state_dict(state["heads"], strict=False)
        self.origin, self.tie_nu, self.trainings = state["origin"], state["tie_nu"], state["trainings"]
        self.learner.forget()
        self.learner.version = state["version"]

    # ------------------------------------------------------------------ inside

    def _told(
        self, prompts: Sequence[Prompt], texts: Sequence[str], failures: dict[int, str]
    ) -> Float[np.ndarray, "texts outputs"]:
        known = None if self.features is None else self.features.rows(prompts, texts)
        rows = self.encoder.rows(prompts, texts)
        told = self._read(RewardBatch.of(rows, range(len(rows)), range(len(rows))), known)
        for i, why in ({} if known is None else known.failures).items():
            failures[i] = why
            told[i] = np.nan
        return told

    @torch.no_grad()
    def _read(self, batch: RewardBatch, known: SparseRows | None) -> Float[np.ndarray, "texts outputs"]:
        parts = [
            text_outputs(self.network, known, outputs, micro).double().cpu().numpy()
            for outputs, micro in self._forward(batch)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.config.names)))

    @torch.no_grad()
    def _forward(self, batch: RewardBatch) -> list[tuple[TokenOutputs, RewardBatch]]:
        with exact(self.learner.device):
            return [(self.learner.outputs(m), m) for m in self.learner.pieces(batch)]

    def _settle(self, examples: Sequence[RewardExample]) -> None:
        pairs = [e for e in examples if isinstance(e, RewardPair)]
        if self.tie_nu is None and pairs:
            self.tie_nu = tie_nu(sum(e.tie for e in pairs) / len(pairs), self.config)
        if self.features is not None:
            prompts, texts, _ = flat(examples)
            self.features = self.features.fitted(prompts, texts)

    def _centre(self, table: Table) -> None:
        count = min(len(table.rows), _CALIBRATION)
        told = self._read(RewardBatch.of(table.rows, range(count), range(count)), table.features)
        self.origin = float(np.nanmean(told @ self._direction(None)))

    def _direction(self, wanted: Mapping[str, float] | None) -> Float[np.ndarray, " outputs"]:
        if wanted is None:
            return self.network.overall.double().cpu().numpy()
        strange = sorted(set(wanted) - set(self.config.names))
        if strange:
            raise ConfigError(f"a direction names {', '.join(strange)}; the outputs are {', '.join(self.config.names)}")
        return np.array([float(wanted.get(name, 0.0)) for name in self.config.names])

    def _failed(self, why: str, kind: str) -> Feedback:
        return Feedback(value=None, failure=why, source=self.name, kind=kind)


def _only_token(tokenizer: Tokenizer, word: str) -> int:
    ids = tokenizer.encode(word, add_special=False)
    if len(ids) != 1 or ids[0] in tokenizer.special_ids:
        raise ConfigError(f"the answer {word!r} has tokens {ids}; expected a word that is one token of the vocabulary")
    return ids[0]
