"""Functions that are interpreted first, and compiled beside that once they have been called for long."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any

import jax
from jax.stages import Compiled, Traced
from jaxtyping import PyTree

from .._cache import cached
from ._program import Interpreted, NoArrays

# What an operation takes to compile, in seconds, and the share of it that is spent interpreting before compilation begins.
PER_OPERATION, SHARE = 2e-3, 0.5


class _Entry:
    """A function for arguments of one structure."""

    def __init__(self, traced: Traced, options: dict[str, Any] | None):
        self.traced, self.options = traced, options
        self.structure = jax.tree.structure(traced.out_info)
        self.compiled: Compiled | None = None
        self.thread: threading.Thread | None = None
        try:
            self.interpreted: Interpreted | None = Interpreted(traced.jaxpr)
        except NoArrays:
            self._compile()
        else:
            self.patience = SHARE * PER_OPERATION * len(self.interpreted.steps)

    def __call__(self, args: tuple[PyTree, ...]) -> PyTree:
        interpreted = self.interpreted
        if interpreted is None:
            assert self.compiled is not None
            return self.compiled(*args)
        began = time.perf_counter()
        found = interpreted(*jax.tree.leaves(args))
        self.patience -= time.perf_counter() - began
        if self.patience < 0 and self.thread is None:
            # Python waits for it at its end: XLA cannot be stopped, and would end the process with it.
            self.thread = threading.Thread(target=self._compile, name="compile bounds")
            self.thread.start()
        return jax.tree.unflatten(self.structure, found)

    def _compile(self) -> None:
        with cached(), jax.enable_x64(True):
            self.compiled = self.traced.lower().compile(compiler_options=self.options)
        self.interpreted = None


class Staged:
    """A function of arrays, for a thread with float64 enabled, which NumPy evaluates until XLA has compiled it.

    Compilation begins in another thread, once interpreting has taken a share of what compilation may take: a function that
    is called a few times is never compiled.

    **Arguments:**

    - `function`: of PyTrees of arrays.
    - `options`: of the compiler.
    """

    def __init__(self, function: Callable, options: dict[str, Any] | None = None):
        self.function, self.options = function, options
        self.known: dict[Hashable, _Entry] = {}

    def __call__(self, *args: PyTree) -> PyTree:
        key = jax.tree.structure(args), tuple((v.shape, v.dtype) for v in map(jax.typeof, jax.tree.leaves(args)))
        if key not in self.known:
            self.known[key] = _Entry(jax.jit(self.function).trace(*args), self.options)
        return self.known[key](args)
