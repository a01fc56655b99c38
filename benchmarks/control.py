"""The table of docs/control.md, from the `results.json` of the control examples.

python benchmarks/control.py docs/results
"""

import json
import sys
from pathlib import Path

EXAMPLES = ("pendulum_swing_down", "pendulum_barrier", "planar_stable_dynamics", "van_der_pol", "segway", "quadrotor2d")


def row(record):
    """An example, the status of its first claim, the size that is proved and that of what it is compared with."""
    figures = record["figures"]
    name, claim = next(iter(record["claims"].items()))
    if "areas" in figures:
        ours, other = figures["areas"]["learned V"], figures["areas"]["quadratic V"]
    elif "neural" in figures:
        ours, other = (next(iter(figures[side].values())) for side in ("neural", "regulator"))
    else:
        ours, other = figures["proved area"], None
    against, ratio = ("", "") if other is None else (f"{other:.4g}", f"{ours / other:.2f}")
    cells = (
        f"`{record['example']}.py`",
        name,
        claim["status"],
        f"{ours:.4g}",
        against,
        ratio,
        f"{record['seconds']:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


def main(folder):
    print("| example | claim | status | proved | best quadratic | ratio | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in EXAMPLES:
        print(row(json.loads((Path(folder) / f"{name}.json").read_text())))


if __name__ == "__main__":
    main(sys.argv[1])
