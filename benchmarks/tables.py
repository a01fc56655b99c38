"""The tables of the documentation, from the records in docs/results.

    python benchmarks/tables.py            # writes them into the pages
    python benchmarks/tables.py --check    # exits with 1 where a page does not say what the records say

A page marks the place of a table by `<!-- table: NAME -->` and `<!-- end of table -->`, each on a line of its own.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
PLACE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", flags=re.DOTALL)


def read(name: str) -> Any:
    """A record, or nothing where there is none."""
    path = DOCS / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; `None` is an empty cell."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join("" if c is None else str(c) for c in line) + " |\n" for line in lines)


def percent(share: float) -> str:
    return f"{100 * share:.2f}"


def digits_folds() -> str:
    names = {
        "monte carlo": "Monte Carlo",
        "path integral": "path integral",
        "end to end": "end to end (Tsit5, adaptive)",
    }
    columns = ("error", "keeps promise, correct", "keeps promise, all", "leaves H, float32", "leaves H, float64")
    rows = [(names[n], *(percent(r["mean"][c]) for c in columns)) for n, r in read("digits_folds")["results"].items()]
    head = (
        "trained by",
        "test error",
        "keeps V(t) ≤ 1.05 V(0) e^(-2t), of the correctly decided",
        "of all",
        "leaves H, float32",
        "float64",
    )
    return table(head, rows)


def digits_measures() -> str:
    names = {
        "cube": "cube, 64",
        "sphere": "origin-biased sphere, 64",
        "mixture": "tube and cube, half each",
    }
    found = {"tube around the trajectories (default)": read("digits_folds")["results"]["monte carlo"]}
    found |= {names[n]: r for n, r in read("digits_measures")["results"].items()}
    columns = ("error", "keeps promise, correct", "keeps promise, all")
    head = ("measure", "test error", "keeps the promise, of the correctly decided", "of all")
    return table(head, ((n, *(percent(r["mean"][c]) for c in columns)) for n, r in found.items()))


def trains_as_well() -> str:
    record = read("trains_as_well")
    rows = sorted(record["test errors"].items(), key=lambda item: item[1]["own"])
    cell = lambda n, r, how: f"{r[how]:.2f}" + (", as well" if n in record["as well"][how] else "")
    return table(
        ("setting", "test error by its own steps", "solved accurately"),
        ((n, cell(n, r, "own"), cell(n, r, "accurate")) for n, r in rows),
    )


def training_step() -> str:
    results = read("training_step")["results"]
    names = list(dict.fromkeys(n for kind in results.values() for n in kind["times"]))
    cell = lambda kind, name: f"{kind['times'][name]['ms']:.1f}" if name in kind["times"] else None
    return table(("setting", *results), ((n, *(cell(kind, n) for kind in results.values())) for n in names))


def training_ratios() -> str:
    results = read("training_step")["results"]
    rows: list[tuple[Any, ...]] = []
    for field, kind in results.items():
        times = kind["times"]
        alone = times["encoder alone"]["ms"]
        for name, row in times.items():
            if row["ratios"]:
                beyond = {r: (times[of]["ms"] - alone) / (row["ms"] - alone) for r, of in kind["references"].items()}
                rows.append((name, field, *(f"{ratio:.2f} ({beyond[r]:.1f})" for r, ratio in row["ratios"].items())))
    references = list(next(iter(results.values()))["references"])
    order = list(dict.fromkeys(row[0] for row in rows))
    rows.sort(key=lambda row: order.index(row[0]))
    return table(("solver-free", "field", *references), rows)


def training_references() -> str:
    results = read("training_step")["results"]
    references = list(next(iter(results.values()))["references"])
    return table(("field", *references), ((field, *kind["references"].values()) for field, kind in results.items()))


def compile_and_memory() -> str:
    kind = read("training_step")["results"]["dense 128"]["times"]
    return table(
        ("setting", "compilation, s", "temporary memory, MB"),
        ((n, f"{r['compile s']:.1f}", f"{r['temporary MB']:.1f}") for n, r in kind.items()),
    )


def time_to_accuracy(width: str) -> str:
    rows = read("time_to_accuracy")["results"][width]
    targets = list(next(iter(rows.values()))["steps"])
    reached = lambda t: [r["seconds"][t] for n, r in rows.items() if "MC" in n and r["seconds"][t] is not None]
    quickest = {t: min(reached(t), default=None) for t in targets}
    shown = lambda value: "not reached" if value is None else f"{value:.1f}"
    ratio = lambda r, t: None if None in (r["seconds"][t], quickest[t]) else f"{r['seconds'][t] / quickest[t]:.1f}"
    head = [
        "setting",
        "ms a step",
        *(f"s to {t} %" for t in targets),
        *(f"of the fastest Monte Carlo, {t} %" for t in targets),
    ]
    return table(
        head,
        (
            (n, f"{r['ms']:.1f}", *(shown(r["seconds"][t]) for t in targets), *(ratio(r, t) for t in targets))
            for n, r in rows.items()
        ),
    )


def scaling(what: str) -> str:
    results = read("scaling")["results"][what]
    if what in ("states", "batch"):
        names = list(next(iter(results.values())))
        head = ("setting", *(f"{'k = ' if what == 'states' else ''}{n}" for n in results))
        return table(head, ((name, *(f"{column[name]['ms']:.2f}" for column in results.values())) for name in names))
    groups: dict[str, dict[str, Any]] = {}
    for name, row in results.items():
        setting, number = name.rsplit(", ", 1)
        groups.setdefault(re.sub(r"\(\d+, (\d+)\)", r"(steps, \1)", setting), {})[number] = row
    numbers = list(next(iter(groups.values())))
    cell = lambda row: f"{row['ms']:.2f} ({row['temporary MB']:.1f}, {row['compile s']:.1f})"
    return table(("setting", *numbers), ((n, *(cell(rows[k]) for k in numbers)) for n, rows in groups.items()))


def inference() -> str:
    head = ("trained by", "solver", "stopped at", "test error", "steps an image", "ms", "of the whole horizon's time")
    numbers = lambda r: (f"{r['test error']:.2f}", f"{r['steps an image']:.1f}", f"{r['ms']:.1f}", f"{r['ratio']:.2f}")
    rows = read("inference")["results"]
    return table(head, ((r["trained by"], r["solver"], r["stop"], *numbers(r)) for r in rows))


def bounds() -> str:
    rows = []
    for network, found in read("bounds")["float64"].items():
        for i, by in enumerate(("crown", "auto_LiRPA")):
            times = [f"{found['us per box'][n][by]:.0f}" for n in ("64", "1024")]
            rows.append((network if i == 0 else None, by, *(f"{r:.3f}" for r in found["ratio"][by]), *times))
    return table(
        ("network", "by", "0.01", "0.05", "0.1", "0.5", "1.0", "µs per box, 64 together", "1,024 together"), rows
    )


def certify() -> str:
    record, radii = read("certify"), ("0.1", "0.2", "0.3")
    rows, found = [], {}
    for scale in (name for name in record if name.startswith("scale")):
        found = record[scale]["certified"]
        rows.append((f"this program, {scale}", *(f"{100 * found['this program'][r]:.1f} %" for r in radii)))
        rows.append((f"its encoder alone, {scale}", *(f"{100 * found['encoder alone'][r]:.1f} %" for r in radii)))
    for name, shown in (("linear", "a linear classifier's margin"), ("nearest neighbor", "nearest neighbor's")):
        rows.append((shown, *(f"{100 * found[name][r]:.1f} %" for r in radii)))
    return table(("", *radii), rows)


def certify_rules() -> str:
    record, radii = read("certify")["scale 8"]["rules"], ("0.1", "0.2", "0.3")
    return table(("rule", *radii), ((n, *(f"{100 * r[x]:.1f} %" for x in radii)) for n, r in record.items()))


def control() -> str:
    names = (
        "pendulum_swing_down",
        "pendulum_barrier",
        "planar_stable_dynamics",
        "van_der_pol",
        "segway",
        "quadrotor2d",
    )
    rows = []
    for record in map(read, names):
        figures = record["figures"]
        claim, found = next(iter(record["claims"].items()))
        if "areas" in figures:
            ours, other = figures["areas"]["learned V"], figures["areas"]["quadratic V"]
        elif "neural" in figures:
            ours, other = (next(iter(figures[side].values())) for side in ("neural", "regulator"))
        else:
            ours, other = figures["proved area"], None
        against = (None, None) if other is None else (f"{other:.4g}", f"{ours / other:.2f}")
        rows.append(
            (f"`{record['example']}.py`", claim, found["status"], f"{ours:.4g}", *against, f"{record['seconds']:.0f}")
        )
    return table(("example", "claim", "status", "proved", "best quadratic", "ratio", "seconds"), rows)


def import_time() -> str:
    record = read("import_time")
    return table(("of `import jax, equinox, diffrax`", "least", "median", "largest"),
                 [("with `import lyapunov_dsl`", *(f"{record['ratio'][k]:.2f}" for k in ("least", "median", "largest")))])  # fmt: skip


def mutation() -> str:
    shown = {"comparison": "comparison rule"}
    seen = lambda r: f"{r['killed'] + r['timeout']} of {r['mutants'] - r['equivalent']}"
    rows = [
        (
            shown.get(group, group),
            r["old"]["mutants"],
            seen(r["old"]),
            r["new"]["mutants"],
            seen(r["new"]),
            r["new"]["equivalent"],
        )
        for group, r in read("mutation").items()
    ]
    before, after = "seen by the tests of seconds that were there", "seen by the tests written for them"
    return table(("group", "mutants", before, "mutants", after, "equivalent"), rows)


def summary() -> str:
    """What one looks for first, each row from another record."""
    ours, rows = "MC Trajectory(8, 1)", []
    shown = lambda ratio: f"{ratio:.1f} times faster" if ratio > 1 else f"{1 / ratio:.1f} times slower"
    for field, kind in read("training_step")["results"].items():
        for reference, ratio in kind["times"][ours]["ratios"].items():
            against = f"{kind['references'][reference]} ({reference})"
            rows.append((f"Monte Carlo step, field {field}", against, shown(ratio)))
    seconds = {n: row["seconds"]["3.0"] for n, row in read("time_to_accuracy")["results"]["128"].items()}
    quickest = min(value for name, value in seconds.items() if "MC" in name and value is not None)
    for against in ("8 Euler, unrolled", "Tsit5 PID, RecursiveCheckpoint"):
        rows.append(("time to 3 % on MNIST, fastest Monte Carlo", against, shown(seconds[against] / quickest)))
    box = read("bounds")["float64"]["net_k10"]["us per box"]["1024"]
    rows.append(("bounds of dV/dt + V, k = 10", "CROWN of auto_LiRPA", shown(box["auto_LiRPA"] / box["crown"])))
    certified = 100 * read("certify_mnist")["L2"]["certified"]
    rows.append(("certified at L2 0.1 on MNIST", "95.8 %, FI-ODE as reported", f"{certified:.1f} %"))
    return table(("what", "against", "result"), rows)


def first_proof() -> str:
    rows = []
    for name, r in read("first_proof").items():
        found = ", ".join([str(r["found"][0]), *(f"{v} boxes" for v in r["found"][1:])])
        checker = f"{r['checker']:.1f}" if r["checker"] >= 0.05 else None
        rows.append((name, found, f"{r['seconds']:.1f}", f"{r['second process']:.1f}", checker))
    return table(("what", "found", "seconds", "in the process after it", "checking the file"), rows)


def attacked() -> str:
    found, proofs = read("attack_bounds"), read("attack_proofs")
    files, systems = proofs["changed files"], proofs["random systems"]
    counts = found["counts"]
    return table(
        ("what", "tried", "false", "tracebacks", "longer than 20 s"),
        [
            (
                "random functions, and their values in boxes",
                f"{counts['functions']:,}, {counts['values']:,}",
                *(counts.get(what, 0) for what in ("unsound", "tracebacks", "hangs")),
            ),
            (
                "changed proof files",
                f"{files['files']:,}",
                files["accepted and false"],
                files["tracebacks"],
                files["hangs"],
            ),
            (
                "random systems, and of them proved",
                f"{systems['systems']:,}, {systems['proved']:,}",
                systems["contradicted"],
                None,
                None,
            ),
        ],
    )


TABLES = {
    "summary": summary, "digits folds": digits_folds, "digits measures": digits_measures, "trains as well": trains_as_well,
    "training step": training_step, "training ratios": training_ratios, "training references": training_references,
    "compile and memory": compile_and_memory,
    "time to accuracy, 128": lambda: time_to_accuracy("128"), "inference": inference,
    "bounds": bounds, "first proof": first_proof, "attacked": attacked, "certify": certify, "certify rules": certify_rules,
    "control": control, "import time": import_time, "mutation": mutation,
    **{f"scaling, {what}": (lambda what=what: scaling(what)) for what in ("states", "samples", "steps", "batch")},
}  # fmt: skip


def filled(text: str) -> str:
    """A page with its tables as the records have them."""
    return PLACE.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n{m[3]}", text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Tables of the documentation from docs/results.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = []
    for page in sorted([*DOCS.rglob("*.md"), DOCS.parent / "CONTRIBUTING.md"]):
        before = page.read_text()
        after = filled(before)
        if after != before:
            stale.append(page.name)
            if not options.check:
                page.write_text(after)
    print("stale:" if options.check else "written:", ", ".join(stale) or "nothing")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
