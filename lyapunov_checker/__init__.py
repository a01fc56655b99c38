"""Checks proofs that `lyapunov_dsl` wrote, without it: no search, no JAX, and intervals of arbitrary precision.

    python -m lyapunov_checker proof.npz

What has to be trusted is in `_rules.py` (what each operation does to intervals and affine forms), `_program.py` (what a program
is, and its derivative), `_proof.py`, `_tree.py` and `_flow.py` (when a claim holds) and `_check.py` (what follows from what);
python-flint (Arb) does the arithmetic, NumPy reads the file.
"""

from ._check import Verdict as Verdict, check as check, identity as identity
from ._limits import Refused as Refused
