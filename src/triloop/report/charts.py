"""Which curves the page draws, and what each is good for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from triloop.report.markup import details, esc, number, percent, section, signed, table
from triloop.report.svg import Chart, Line, Mark, draw, running_mean
from triloop.report.view import RunView, is_note

__all__ = ["curves", "hero"]

_SMOOTH_FROM = 40
"""Rounds from which a mean is drawn over the single values."""
_TABLE_ROWS = 60


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One small chart: names of metrics with their labels, and one line that says how to read it."""

    title: str
    says: str
    names: Sequence[tuple[str, str]]
    show: Callable[[float], str] = number
    span: tuple[float | None, float | None] = (None, None)


_PLANS = (
    _Plan(title="Reward", says="Mean of what the learner was paid, on training problems.", names=[("reward", "reward")],
          show=lambda v: number(v, 2)),
    _Plan(title="Two judges", says="On canary problems, never trained on. When they part, the reward is being gamed.",
          names=[("canary_proxy", "judge that pays"), ("canary_gold", "what is meant")], show=percent, span=(0.0, None)),
    _Plan(title="Drift", says="KL from the original policy, nats per token.", names=[("kl", "KL")], span=(0.0, None)),
    _Plan(title="Entropy", says="Nats per generated token. Near 0 the policy has stopped trying things.",
          names=[("entropy", "entropy")], span=(0.0, None)),
    _Plan(title="Length", says="Tokens of a completion.", names=[("length", "mean length")], span=(0.0, None)),
    _Plan(title="Cut off", says="Completions that met the length limit.",
          names=[("truncated_share", "share cut off")], show=percent, span=(0.0, 1.0)),
    _Plan(title="Groups without spread", says="All rewards of a group equal: nothing to learn from it.",
          names=[("zero_std_share", "share of groups")], show=percent, span=(0.0, None)),
    _Plan(title="Perplexity under the original", says="How strange the samples look to the model that we began with.",
          names=[("ppl_original", "perplexity")]),
    _Plan(title="Variety", says="Are the samples still different from each other?",
          names=[("distinct_2", "distinct pairs"), ("template_share", "commonest template")], show=percent,
          span=(0.0, None)),
    _Plan(title="Gradient norm", says="Before clipping.", names=[("grad_norm", "norm")], span=(0.0, None)),
)  # fmt: skip


def hero(view: RunView) -> str:
    """The held-out curve, large, with its interval; empty before anything was measured."""
    held = view.evaluations
    if not held:
        return ""
    metric = held[-1].metric
    line = Line(
        label=metric,
        points=[(e.round, e.value) for e in held],
        dots=True,
        band=[(e.round, e.low, e.high) for e in held],
    )
    top = 1.0 if max(e.high for e in held) > 0.5 else None
    chart = Chart(
        title=f"{metric} on held-out problems",
        lines=[line],
        show=held[-1].told,
        tick=_per_cent if held[-1].is_share else "{:g}".format,
        size=(760.0, 470.0),
        marks=_marks(view),
        undone=_undone(view),
        span=(min(0.0, *(e.low for e in held)) if not held[-1].is_share else 0.0, top),
    )
    rows = [
        [esc(e.when), number(e.round), e.told(e.value), f"{e.told(e.low)} to {e.told(e.high)}", number(e.n)]
        for e in held
    ]
    data = table(["when", "round", metric, "95 % interval", "problems"], rows, kind="data", caption="held-out checks")
    return (
        f'<figure class="hero"><figcaption><b>{esc(metric)} on held-out problems</b> '
        f"<span>by round; the band is the 95 % interval</span></figcaption>"
        f"{draw(chart)}{details('Data', data)}</figure>"
    )


def curves(view: RunView) -> str:
    """A card per quantity that was measured."""
    cards = [card for plan in _PLANS if (card := _card(plan, view))]
    if not cards:
        return ""
    legend = "Thin: each round. Thick: running mean. A triangle marks the alarm of a guard."
    lead = legend if len(view.metrics) >= _SMOOTH_FROM else "By round. A triangle marks the alarm of a guard."
    return section("curves", "Curves", f'<div class="cards">{"".join(cards)}</div>', lead)


def _card(plan: _Plan, view: RunView) -> str:
    measured = [(name, label, view.series(name)) for name, label in plan.names]
    measured = [item for item in measured if item[2]]
    if not measured:
        return ""
    lines = [line for i, (_, label, points) in enumerate(measured) for line in _lines(label, points, i + 1)]
    chart = Chart(
        title=plan.title,
        lines=lines,
        show=plan.show,
        tick=_per_cent if plan.show is percent else "{:g}".format,
        marks=_marks(view),
        undone=_undone(view),
        span=plan.span,
    )
    last = "".join(
        f'<span class="key t{i + 1}">{_key(label, len(measured))}<b>{esc(_shown(plan, points[-1][1]))}</b></span>'
        for i, (_, label, points) in enumerate(measured)
    )
    many = " many" if len(measured) > 1 else ""
    return (
        f'<figure class="card"><figcaption><b>{esc(plan.title)}</b><span class="last{many}">{last}</span>'
        f"<small>{esc(plan.says)}</small></figcaption>{draw(chart)}{details('Data', _data(plan, measured))}</figure>"
    )


def _per_cent(value: float) -> str:
    return f"{100 * value:g} %"


def _shown(plan: _Plan, value: float) -> str:
    return signed(round(value, 2)) if plan.title == "Reward" else plan.show(value)


def _key(label: str, of: int) -> str:
    return f"<i></i>{esc(label)} " if of > 1 else ""


def _lines(label: str, points: list[tuple[float, float]], tone: int) -> list[Line]:
    if len(points) < _SMOOTH_FROM:
        return [Line(label=label, points=points, tone=tone)]
    window = max(5, len(points) // 20)
    return [
        Line(label=label, points=points, tone=tone, faint=True),
        Line(label=f"{label} (mean of {window | 1})", points=running_mean(points, window), tone=tone),
    ]


def _data(plan: _Plan, measured: list[tuple[str, str, list[tuple[float, float]]]]) -> str:
    values = [dict(points) for _, _, points in measured]
    rounds = sorted(set().union(*values))
    step = max(1, -(-len(rounds) // _TABLE_ROWS))
    kept = sorted({*rounds[::step], rounds[-1]})
    rows = [[number(r), *(plan.show(v[r]) if r in v else "–" for v in values)] for r in kept]
    caption = plan.title if step == 1 else f"{plan.title}, every {step}th round"
    return table(["round", *(label for _, label, _ in measured)], rows, kind="data", caption=caption)


def _marks(view: RunView) -> list[Mark]:
    """The first alarm of each guard in each stretch of alarms, and the stop."""
    marks: list[Mark] = []
    open_until: dict[str, int] = {}
    for verdict in view.verdicts:
        if verdict.value >= 0 or verdict.round < 1 or is_note(verdict):
            continue
        if verdict.round > open_until.get(verdict.guard, -9) + 1:
            kind = "alarm" if verdict.action in ("stop", "roll_back") else "warn"
            marks.append(
                Mark(x=verdict.round, text=f"round {verdict.round}, {verdict.guard}: {verdict.reason}", kind=kind)
            )
        open_until[verdict.guard] = verdict.round
    return marks


def _undone(view: RunView) -> tuple[float, float] | None:
    return (min(view.undone), max(view.undone)) if view.undone else None
