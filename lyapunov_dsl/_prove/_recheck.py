"""The last step of a proof: the second program recomputes it.

It runs in a process of its own: its start takes a fifth of a second, and then nothing of this one can bear on it, neither JAX nor a
module that was changed, nor how the processor was told to round or to flush.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
import time as clock
from pathlib import Path
from typing import Any, NamedTuple

from .._certify import Assurance, Claim
from ._branch import CUT
from ._proof import OutOfBoxes, Proof, checking, decides, precision

# The checker runs where it is expected to take no longer than this, or than the search took.
SECONDS = 10.0
# Boxes that are tried to estimate that.
TRIED = 5


class Recheck(NamedTuple):
    """What the second program said.

    **Arguments:**

    - `status`: what the claims are now.
    - `text`: by what they were checked, or why they were not.
    """

    status: Assurance
    text: str


def recheck(proof: Proof, status: Assurance, searched: float) -> Recheck:
    """Writes a proof to a file and runs `python -m lyapunov_checker` on it.

    **Arguments:**

    - `proof`: what was found.
    - `status`: how it was found.
    - `searched`: seconds that this took; the checker is not asked where it would take longer, unless that is little.
    """
    from lyapunov_checker import identity

    if isinstance(proof.record, str):
        return Recheck(status, f"not checked: the checker does not know the functions ({proof.record})")
    if not sys.executable:
        return Recheck(status, "not checked: there is no interpreter to run the checker with; proof.save does it")
    allowed = max(SECONDS, searched)
    expected = _expected(proof)
    if expected > allowed:
        about = "minutes" if expected > 90 else f"{expected:.0f} s"
        about = f"{expected / 60:.0f} {about}" if expected > 90 else about
        return Recheck(status, f"not checked: the checker would need about {about}; proof.save does it")
    began = clock.monotonic()
    try:
        content = proof.written(seconds=3 * allowed)
    except OutOfBoxes:
        return Recheck(
            status, "not checked: the checker would need more boxes and time than the search; proof.save does it"
        )
    except ValueError as error:
        return Recheck(Assurance.UNDECIDED, f"refused by the checker: {error}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "proof.npz"
        path.write_bytes(content)
        code, out = _run(path, 3 * allowed + 60)
    if code != 0:
        proof.content = None
        if out.startswith("refused: seconds"):
            return Recheck(status, f"not checked: it took longer than expected ({out}); proof.save does it")
        return Recheck(Assurance.UNDECIDED, out.strip() or f"the checker ended with the exit status {code}")
    *_, last = out.strip().splitlines()
    about = identity(*proof.record)
    if f"SHA-256 {about}" not in out:
        return Recheck(Assurance.UNDECIDED, "refused: the checker read other programs than were written")
    text = f"checked by another process {last}, in {clock.monotonic() - began:.1f} s: programs with the SHA-256 {about}"
    if status is Assurance.PROVED_FLOAT:
        return Recheck(
            status, f"{text}; it speaks of real arithmetic, and what is evaluated in float64 rests on the search"
        )
    return Recheck(Assurance.CHECKED, text)


def settled(claim: Claim, status: Assurance, text: str) -> Claim:
    """A claim after the last step: what the checker recomputed is checked, and where it refuses nothing is decided."""
    if status is Assurance.UNDECIDED:
        return dataclasses.replace(claim, assurance=status, given=text)
    return dataclasses.replace(claim, assurance=status) if status is Assurance.CHECKED else claim


def _run(path: Path, seconds: float) -> tuple[int, str]:
    import lyapunov_checker

    # The same checker, and nothing else from here: no module of the current folder (-P) may stand for one of its own.
    root = str(Path(lyapunov_checker.__file__).parents[1])
    before = os.environ.get("PYTHONPATH")
    env = {**os.environ, "PYTHONPATH": root if not before else f"{root}{os.pathsep}{before}"}
    command = [sys.executable, "-P", "-m", "lyapunov_checker", "--seconds", f"{seconds:.0f}", str(path)]
    found = subprocess.run(command, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return found.returncode, found.stdout


def _expected(proof: Proof) -> float:
    """Seconds that the checker needs for the boxes of a proof, from a few of them: each is tried to write the file, and again to
    check it. A box that its rules do not decide is cut, which is not foreseen."""
    total = 0.0
    with precision():
        checked: Any = checking(proof.record)
        for name, tree in proof.trees.items():
            leaves = (tree.rule != CUT).nonzero()[0]
            boxes = _boxes(tree, {int(i) for i in leaves[:: max(1, len(leaves) // TRIED)][:TRIED]})
            began = clock.monotonic()
            # Derivatives are made once, in the first round.
            for _ in range(2):
                began = clock.monotonic()
                for node, low, high in boxes:
                    decides(checked, name, int(tree.rule[node]), low, high)
            total += 2 * len(leaves) * (clock.monotonic() - began) / max(1, len(boxes))
    return total


def _boxes(tree: Any, wanted: set[int]) -> list[tuple[int, Any, Any]]:
    """The ends of some leaves, which a tree does not keep."""
    found, waiting = [], [(0, tree.low, tree.high)]
    while waiting and len(found) < len(wanted):
        node, low, high = waiting.pop()
        if node in wanted:
            found.append((node, low, high))
        if tree.rule[node] == CUT:
            axis, below, above = int(tree.axis[node]), high.copy(), low.copy()
            below[axis] = above[axis] = tree.at[node]
            child = int(tree.child[node])
            waiting += [(child + 1, above, high), (child, low, below)]
    return found
