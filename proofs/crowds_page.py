"""What proofs/crowds.py found, as Markdown."""

from __future__ import annotations

from typing import Any


def shown(x: list[float], digits: int = 3, signed: bool = False) -> str:
    """Value and interval."""
    value, low, high = x[:3]
    form = f"{'+' if signed else ''}.{digits}f"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def page(f: dict[str, Any]) -> str:
    """The whole page."""
    lines = [
        "# Crowds and judges",
        "",
        f"Made by `python proofs/crowds.py` on {f['date']}, {f['machine']}, in {f['seconds']:.0f} s. Intervals: 95 %.",
        "",
        "## Real crowds",
        "",
        "Each worker's first vote on an item counts. Gain: over majority, paired by gold item.",
        "",
        "| crowd | votes | items | workers | gold | model | accuracy | gain | steps | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {c['name']} | {c['votes']} | {c['items']} | {c['workers']} | {c['gold']} | {r['model']} "
        f"| {r['accuracy']:.4f} | {shown(r['gain'], 4, True) if r['gain'] else '–'} "
        f"| {r['steps'] or '–'} | {'–' if r['seconds'] is None else r['seconds']} |"
        for c in f["real"]
        for r in c["rows"]
    ]
    lines += [
        "",
        "Beside crowd-kit's Dawid-Skene, as both come and with the stopping rule off. That rule adds the prior once "
        "per vote instead of once per item; on adult2 and copyright that sum falls while the likelihood rises: it stops "
        "after two or three steps. Left to converge, both come out lower on adult2: there the likelihood's maximum is "
        "not the best labelling, and stopping early is a regulariser.",
        "",
        "| crowd | crowd-kit stops by | steps | largest difference | accuracy, ours and theirs | gain over majority "
        "| s, ours and theirs |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for c in f["real"]:
        for r in c["reference"]:
            lines.append(
                f"| {c['name']} | {r['rule']} | {r['steps']} | {r['difference']:.1e} | {r['accuracy'][0]:.4f}, "
                f"{r['accuracy'][1]:.4f} | {shown(r['gain'], 4, True)} | {r['seconds'][0]}, {r['seconds'][1]} |"
            )
    return "\n".join([*lines, *_simulated_part(f), *_judges_part(f)]) + "\n"


def _simulated_part(f: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "## Simulated crowds, downstream",
        "",
        f"{f['train']} items of {f['dimensions']} features. 40 % of the workers guess, 40 % are right 65 % of the time, "
        f"20 % are right 95 %. A learner is trained on the labels and tested on {f['test']} true ones; columns: accuracy. "
        "Gain: loss weighed by Dawid-Skene's posterior confidence, against majority votes, paired by test item. The rule: "
        "its lower end exceeds 0 in every row of the first table. The setting of the second table was tried first, on "
        "other seeds, and lost there: with 30 votes a worker nobody's confusion matrix is known well. Of weighing: against "
        "Dawid-Skene's labels unweighed. ECE: of the posterior on the training items.",
    ]
    for crowd, (workers, per_item) in f["crowds"].items():
        rows = [r for r in f["simulated"] if r["crowd"] == crowd]
        columns = list(rows[0]["logistic"]["accuracy"])
        lines += [
            "",
            f"### {crowd.capitalize()} ({workers} workers, {per_item} votes an item)",
            "",
            f"| seed | labels right: majority, Dawid-Skene | ECE | learner | {' | '.join(columns)} | gain | of weighing |",
            "| --- | --- | --- | --- |" + " --- |" * (len(columns) + 2),
        ]
        lines += [
            f"| {r['seed']} | {r['labels right']['majority']:.3f}, {r['labels right']['Dawid-Skene']:.3f} "
            f"| {r['ece']:.3f} | {name} | "
            + " | ".join(f"{v:.3f}" for v in r[name]["accuracy"].values())
            + f" | {shown(r[name]['gain'], 3, True)} | {shown(r[name]['of weighing'], 3, True)} |"
            for r in rows
            for name in f["mean gain"][crowd]
        ]
        for name in f["mean gain"][crowd]:
            m = f["mean gain"][crowd][name]
            lines += ["", f"Mean over seeds, {name}: gain {shown(m[0], 3, True)}, of weighing {shown(m[1], 3, True)}."]
    return lines


def _judges_part(f: dict[str, Any]) -> list[str]:
    lines = [
        "",
        "## Judges asked in both orders",
        "",
        "JudgeBench pairs with an objectively true label. Inconsistent: the two verdicts do not name the same answer. "
        "First: of the pairs given to one place both times, the share that went to the first. Lean: how much more often "
        "the first is preferred than the second. Order: the same in log-odds, fitted with Rao-Kupper ties, and its "
        "standard error. Decided: share with a verdict after both orders.",
        "",
        "| judge | n | inconsistent | first | lean | order | ties | right, one order | decided | right when decided |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['judge']} | {r['n']} | {shown(r['inconsistent'])} "
        f"| {shown(r['favours first'], 2) if r['favours first'] else '–'} | {shown(r['lean'], 3, True)} "
        f"| {r['order'][0]:+.3f} ± {r['order'][1]:.3f} | {shown(r['ties'])} | {shown(r['right'])} "
        f"| {r['decided']:.3f} | {shown(r['right when decided'])} |"
        for r in f["judges"]
    ]
    lines += [
        "",
        f"Agreement of the judges' verdicts: Krippendorff's alpha {f['alpha']:.3f}.",
        "",
        "Scores as probabilities, s(score of the first − score of the second): temperature, conformal threshold (level "
        "0.2) from one half of the pairs, measured on the other; mean of 50 seeded halvings. ECE: ten bins of equal mass.",
        "",
        "| judge | temperature | ECE before | ECE after | answered | answered and wrong |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for r in f["judges"]:
        if c := r.get("calibration"):
            lines.append(
                f"| {r['judge']} | {c['temperature']:.2f} | {c['ece'][0]:.3f} | {c['ece'][1]:.3f} | {c['answered']:.3f} "
                f"| {c['answered and wrong']:.3f} |"
            )
    return lines
