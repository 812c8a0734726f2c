"""The top of the page: what it was, how far it came, what stopped it, and the figures one asks for first."""

from __future__ import annotations

import math

from triloop.report.markup import clock, count, esc, number, points
from triloop.report.samples import sample_card
from triloop.report.view import Evaluation, RunView, is_note
from triloop.stats import two_proportions

__all__ = ["banner", "headline", "tiles", "title"]

_STATUS = {"finished": "finished", "stopped": "stopped by a guard", "failed": "failed", "unfinished": "not finished"}


def title(view: RunView) -> str:
    """One line for the browser's tab."""
    before, after = view.before, view.after
    if before and after:
        return f"{_recipe(view)}: {before.told(before.value)} → {after.told(after.value)}"
    return f"{_recipe(view)}: {_rounds(view)}"


def headline(view: RunView) -> str:
    """Recipe and state, then the two numbers that the run is about."""
    state = f'<span class="status {view.status}">{esc(_STATUS[view.status])}</span>'
    env, algorithm = view.config.get("env") or {}, view.config.get("algorithm") or {}
    facts = [
        str(env.get("name", "")),
        str(algorithm.get("name", "")),
        f"seed {view.config['seed']}" if "seed" in view.config else "",
    ]
    kicker = " · ".join(esc(fact) for fact in dict.fromkeys(facts) if fact and fact != _recipe(view))
    said = f'<p class="kicker"><b>{esc(_recipe(view))}</b> {kicker} {state}</p>'
    return f'<header class="{view.status}">{said}{_figures(view)}</header>'


def _figures(view: RunView) -> str:
    before, after = view.before, view.after
    if before is None:
        text = _rounds(view) if view.metrics else "No round yet"
        return f'<h1>{esc(text)}</h1><p class="sub">Nothing was measured on held-out problems.</p>'
    if after is None:
        return (
            f'<h1><span class="was">{_big(before)}</span> <span class="arrow" aria-hidden="true">→</span> '
            f'<span class="open">…</span></h1><p class="sub">{esc(before.metric)} on {number(before.n)} held-out '
            f"problems before the run. {esc(_rounds(view))}; not measured again yet.</p>"
        )
    gain = _gain(before, after)
    measured = "" if after.when == "after" else f" (last measured at round {after.round})"
    return (
        f'<h1 aria-label="from {before.told(before.value)} to {after.told(after.value)}">'
        f'<span class="was">{_big(before)}</span> <span class="arrow" aria-hidden="true">→</span> '
        f'<span class="now">{_big(after)}</span></h1>'
        f'<p class="sub">{esc(after.metric)} on {number(after.n)} held-out problems, before and after '
        f"{esc(_rounds(view))}{measured}.{gain}</p>"
    )


def _big(e: Evaluation) -> str:
    text = e.told(e.value)
    return f"{esc(text.removesuffix(' %'))}<small> %</small>" if e.is_share else esc(text)


def _gain(before: Evaluation, after: Evaluation) -> str:
    """The difference with its interval: of two shares, or of two means whose intervals are known."""
    if before.is_share and after.is_share:
        if not (before.n and after.n and all(0 <= e.value <= 1 for e in (before, after))):
            return ""
        counts = (round(after.value * after.n), after.n, round(before.value * before.n), before.n)
        diff = two_proportions(*counts)
        low, high, value, unit = points(diff.low), points(diff.high), points(diff.value), " points"
    else:
        half = math.hypot((after.high - after.low) / 2, (before.high - before.low) / 2)
        change = after.value - before.value
        value, low, high = (f"{x:+.3f}".replace("-", "−") for x in (change, change - half, change + half))
        unit = ""
    return f' <b class="gain">{value}{unit}</b> <span>(95 % interval {low} to {high})</span>'


def banner(view: RunView) -> str:
    """Why the run is not a finished one: the guard's reason and its samples, or how to go on."""
    if view.status == "stopped":
        cards = "".join(sample_card(episode, open_prompt=True) for episode in view.evidence)
        shown = f'<h3>What it saw</h3><div class="samples">{cards}</div>' if cards else ""
        by = f" at round {view.stop.round} by the guard <b>{esc(view.stop.guard)}</b>" if view.stop else " by a guard"
        reason = view.stop.reason if view.stop else view.reason
        return (
            f'<aside class="banner stop" role="note"><h2><span aria-hidden="true">▼ </span>Stopped{by}</h2>'
            f"<p>{esc(reason)}</p>{shown}</aside>"
        )
    if view.status == "failed":
        return f'<aside class="banner stop" role="note"><h2>The run failed</h2><p>{esc(view.reason)}</p></aside>'
    if view.status == "unfinished":
        return (
            '<aside class="banner"><h2>Not finished</h2><p>The run was interrupted, or is still going. '
            f"Everything up to here is stored; <code>triloop resume {esc(view.name)}</code> goes on.</p></aside>"
        )
    return ""


def tiles(view: RunView) -> str:
    """Key figures, each with the line that makes it readable."""
    found = [_training(view), _tokens(view), _time(view), _drift(view), _perplexity(view), _guards(view)]
    cells = "".join(
        f'<div class="tile {kind}"><dt>{esc(name)}</dt><dd><b>{esc(value)}</b><span>{esc(note)}</span></dd></div>'
        for name, value, note, kind in (t for t in found if t)
    )
    return f'<dl class="tiles">{cells}</dl>' if cells else ""


_Tile = tuple[str, str, str, str]


def _training(view: RunView) -> _Tile | None:
    if not view.metrics:
        return None
    wanted = view.config.get("rounds") if not view.artifacts else None
    group, prompts = view.config.get("group_size"), view.config.get("prompts_per_round")
    note = f"{prompts} problems × {group} samples each" if group and prompts else ""
    done = len(view.metrics) - len(view.undone)
    return "rounds", f"{done}" if done == wanted or not wanted else f"{done} of {wanted}", note, ""


def _tokens(view: RunView) -> _Tile | None:
    total = sum(value for _, value in view.series("tokens"))
    speed = view.series("tokens_per_second")
    if not total:
        return None
    middle = sorted(v for _, v in speed)[len(speed) // 2] if speed else 0
    return "tokens generated", count(total), f"{middle:,.0f} a second" if middle else "", ""


def _time(view: RunView) -> _Tile | None:
    total = sum(value for _, value in view.series("seconds"))
    if not total:
        return None
    rollout = sum(v for _, v in view.series("rollout_seconds")) / total
    learn = sum(v for _, v in view.series("learn_seconds")) / total
    note = f"{100 * rollout:.0f} % generating, {100 * learn:.0f} % learning" if rollout or learn else ""
    return "time in rounds", clock(total), note, ""


def _drift(view: RunView) -> _Tile | None:
    kl = view.series("kl")
    return ("drift from the original", number(kl[-1][1]), "KL, nats per token, last round", "") if kl else None


def _perplexity(view: RunView) -> _Tile | None:
    ppl = view.series("ppl_original")
    if len(ppl) < 2 or ppl[0][1] <= 0:
        return None
    change = f"{100 * (ppl[-1][1] / ppl[0][1] - 1):+.0f} %".replace("-", "−")
    return "perplexity of the samples", change, f"{number(ppl[0][1])} to {number(ppl[-1][1])}, under the original", ""


def _guards(view: RunView) -> _Tile | None:
    names = {v.guard for v in view.verdicts}
    if not names:
        return None
    alarms = [v for v in view.verdicts if v.value < 0 and not is_note(v)]
    who = sorted({v.guard for v in alarms})
    told = f"{', '.join(who[:3])}{' …' if len(who) > 3 else ''}" if who else f"{len(names)} checks, none objected"
    noun = "alarm" if len(alarms) == 1 else "alarms"
    return f"guards, {noun}", str(len(alarms)), told, "bad" if alarms else "good"


def _recipe(view: RunView) -> str:
    return str(view.config.get("recipe") or "run")


def _rounds(view: RunView) -> str:
    done = len(view.metrics) - len(view.undone)
    return f"{done} round{'' if done == 1 else 's'}"
