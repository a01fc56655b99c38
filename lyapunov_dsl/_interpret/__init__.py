"""Evaluation of traced programs by NumPy, for those that run too seldom to be worth compiling."""

from ._program import Interpreted, evaluated
from ._staged import Staged

__all__ = ["Interpreted", "Staged", "evaluated"]
