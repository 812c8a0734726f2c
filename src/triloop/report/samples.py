"""What the policy wrote: at the first, the middle and the last round, next to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from triloop.records import Episode, Prompt
from triloop.report.markup import details, esc, prose, section, signed
from triloop.report.view import RunView

__all__ = ["sample_card", "samples"]

_ROWS = 4


def samples(view: RunView) -> str:
    """Same problem in one row where the rounds share problems; otherwise each column shows its own."""
    shown = {round: episodes for round, episodes in view.episodes.items() if episodes}
    if not shown:
        return ""
    rounds = sorted(shown)
    names = _names(rounds, view)
    shared = _shared(shown)
    head = "".join(f'<div class="colhead">{esc(names[r])}<span>round {r}</span></div>' for r in rounds)
    rows = "".join(_row(cells, names) for cells in (_same(shown, shared) if shared else _any(shown)))
    lead = "The same held-out problems each time." if view.held_out else "The same problems in each round."
    lead = lead if shared else "Problems are new in every round, so the columns differ."
    grid = f'<div class="triptych n{len(rounds)}"><div class="row heads">{head}</div>{rows}</div>'
    return section("samples", "Samples", grid, lead)


def sample_card(episode: Episode, *, open_prompt: bool = False, label: str = "") -> str:
    """One completion with its prompt, reward and the judges' reasons. All of it is untrusted text."""
    reasons = "; ".join(f.reason or f.failure or "" for f in episode.feedback if f.reason or f.failure)
    tone = _tone(episode.reward)
    said = f'<p class="why">{esc(reasons[:400])}</p>' if reasons else ""
    top = f'<span class="when">{esc(label)}</span>' if label else ""
    prompt = f'<div class="asked">{prose(_prompt_text(episode.prompt))}</div>'
    if not open_prompt and len(_prompt_text(episode.prompt)) > 400:
        prompt = details("Prompt", prompt)
    cut = ' <span class="quiet">(cut at the limit)</span>' if episode.completion.finish == "length" else ""
    return (
        f'<article class="sample {tone}">{top}{prompt}<div class="wrote">{prose(episode.completion.text)}{cut}</div>'
        f'<footer><span class="chip {tone}">{esc(_reward(episode.reward))}</span>{said}'
        f'<code class="id">{esc(episode.completion.id)}</code></footer></article>'
    )


def _names(rounds: Sequence[int], view: RunView) -> dict[int, str]:
    after = view.after.when == "after" if view.held_out and view.after else False
    first, last = "Before" if view.held_out and rounds[0] == 0 else "First", "After" if after else "Last"
    words = {1: (first,), 2: (first, last)}.get(len(rounds), (first, "Middle", last))
    return dict(zip(rounds, words, strict=False))


def _shared(shown: Mapping[int, Sequence[Episode]]) -> list[str]:
    sets = [{e.prompt.id for e in episodes} for episodes in shown.values()]
    return sorted(set.intersection(*sets)) if len(sets) > 1 else []


def _same(shown: Mapping[int, Sequence[Episode]], ids: Sequence[str]) -> list[list[tuple[int, Episode]]]:
    by_id = {round: {e.prompt.id: e for e in episodes} for round, episodes in shown.items()}
    return [[(round, by_id[round][id]) for round in sorted(shown)] for id in ids[:_ROWS]]


def _any(shown: Mapping[int, Sequence[Episode]]) -> list[list[tuple[int, Episode]]]:
    most = min(_ROWS, max(len(episodes) for episodes in shown.values()))
    return [[(r, shown[r][i]) for r in sorted(shown) if i < len(shown[r])] for i in range(most)]


def _row(cells: Sequence[tuple[int, Episode]], names: Mapping[int, str]) -> str:
    cards = "".join(sample_card(episode, label=f"{names[round]}, round {round}") for round, episode in cells)
    return f'<div class="row">{cards}</div>'


def _prompt_text(prompt: Prompt) -> str:
    return "\n".join(f"{t.role}: {t.text}" for t in prompt.turns) if prompt.turns else prompt.text


def _reward(reward: float | None) -> str:
    return "no judgement" if reward is None else f"reward {signed(reward)}"


def _tone(reward: float | None) -> str:
    return "none" if reward is None else "plus" if reward > 0 else "minus" if reward < 0 else "nought"
