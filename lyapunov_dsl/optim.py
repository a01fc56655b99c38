"""Nero, the optimizer of the paper's experiments (Liu et al. 2021), for Optax."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ._types import is_finite, is_traced

# The scale of biases that start at zero, as in the authors' implementation.
_SCALE_OF_ZERO = 0.01
# A row whose entries differ by less than this many units in the last place of its norm has no direction left once it is
# centered.
_NO_DIRECTION = 8


class NeroState(NamedTuple):
    """What Nero keeps between two steps; `None` where a leaf is no floating-point array.

    **Arguments:**

    - `steps`: how many were taken.
    - `size`: ĝ, the root mean square of the gradient's norms, one for every neuron.
    - `scale`: σ, one for every array.
    """

    steps: Array
    size: PyTree
    scale: PyTree


def nero(learning_rate: Any = 0.01, beta: Any = 0.999, constraints: bool = True) -> optax.GradientTransformation:
    """Nero, the neuronal rotator (Liu, Bernstein, Meister and Yue, Learning by Turning: Neural Architecture Aware
    Optimisation, ICML 2021, algorithm 1).

    A neuron is a row of an array along its leading axis: the incoming weights of one output, as Equinox lays them out.
    An array with one entry a row has single entries for neurons, whatever its rank: biases, gains, the (out, 1, 1) bias
    of a convolution, and weights of fan-in 1. With g the gradient of neuron w at step t,

        ĝ_t² = (1 - β) / (1 - β^t) Σ_s β^(t - s) ‖g_s‖²,    w ← w - η σ g_t / ĝ_t,    w ← (w - mean w) / ‖w - mean w‖.

    The last assignment keeps the network balanced, and is for neurons of more than one entry. There σ = 1, the norm of a
    balanced neuron, so that a step turns it by an angle of about η. Elsewhere σ is the mean of |w| over the array when
    the optimizer is initialized, 0.01 if that is zero. Without constraints nothing is projected, and σ is the mean norm
    of the neurons of the array at that time.

    A transformation cannot change what it is initialized with: put the parameters on the constraint set first, with
    [`lyapunov_dsl.optim.balance`][], so that the first gradient is taken there. Otherwise the first step puts them there,
    with σ = 1 as well.

    Beware: the update is the difference to the projected parameters. In `optax.chain`, Nero comes last, and no weight
    decay is needed. A neuron of two weights has two balanced positions only, (1, -1)/√2 and (-1, 1)/√2, and cannot turn
    from one to the other by small steps: leave the first layer on data in the plane unconstrained. So should be gains
    that are of rank above 1 (`eqx.nn.LayerNorm` over several axes), since they are taken for weights. Both are done with
    `optax.partition` (its labels as a function, since a module of labels may be callable and would be taken for one).

    Where the equations say 0/0: a neuron that has seen no gradient but zeros stays, and a neuron whose entries are all
    equal (zeros, for example), which centering would leave without a direction, is not projected until they differ.

    **Arguments:**

    - `learning_rate`: η, a positive number or an Optax schedule.
    - `beta`: β, in [0, 1); with 0, each gradient is divided by its own norm.
    - `constraints`: whether to keep neurons balanced.

    **Returns:** an `optax.GradientTransformation` whose `update` needs the parameters. Its state holds one number a
    neuron, in single precision at least.

    **Raises:** `ValueError` for a number out of its range (arrays, as `optax.inject_hyperparams` gives, are not looked
    at), and in `update` without parameters.
    """
    _check(learning_rate, beta)

    def init(params: PyTree) -> NeroState:
        def size(leaf: Any) -> Any:
            return jnp.zeros_like(_norms(_rows(leaf))) if _moves(leaf) else None

        def scale(leaf: Any) -> Any:
            if not _moves(leaf):
                return None
            norms = _norms(_rows(leaf))
            if constraints and _rows(leaf).shape[1] > 1:
                return jnp.ones((), norms.dtype)
            mean = jnp.mean(norms)
            return jnp.where(mean == 0, _SCALE_OF_ZERO, mean)

        return NeroState(jnp.zeros((), jnp.int32), jax.tree.map(size, params), jax.tree.map(scale, params))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, NeroState]:
        if params is None:
            raise ValueError(
                "params: expected update(gradients, state, params), since Nero's step depends on them; got None"
            )
        steps: Any = optax.safe_increment(state.steps)
        # As elsewhere in Optax, a schedule's first step is number 0.
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate

        def size(gradient: Any, before: Any) -> Any:
            if gradient is None or before is None:
                return before
            return _average(before, _norms(_rows(gradient).astype(before.dtype)), beta, steps)

        def move(gradient: Any, size: Any, scale: Any, leaf: Any) -> Any:
            if gradient is None:
                return None
            if scale is None:
                return jnp.zeros_like(leaf)
            rows = _rows(leaf)
            step = -jnp.asarray(rate, scale.dtype) * scale * (_rows(gradient).astype(rows.dtype) / _or_one(size))
            if constraints and rows.shape[1] > 1:
                step = _balanced(rows + step) - rows
            return step.reshape(leaf.shape).astype(leaf.dtype)

        # Equinox's filters leave None where there is no gradient, and possibly something that is no array in `params`.
        is_none = lambda leaf: leaf is None
        sizes = jax.tree.map(size, updates, state.size, is_leaf=is_none)
        moved = jax.tree.map(move, updates, sizes, state.scale, params, is_leaf=is_none)
        return moved, NeroState(steps, sizes, state.scale)

    return optax.GradientTransformation(init, update)


def balance(params: PyTree) -> PyTree:
    """The nearest balanced network: every neuron with mean 0 and norm 1 (Liu et al. 2021, definition 2).

    For a whole program, only what is trained:

        params, static = eqx.partition(program, ld.trainable(program))
        program = eqx.combine(ld.optim.balance(params), static)

    **Arguments:**

    - `params`: a PyTree of parameters. `None` and what is no floating-point array stay as they are, as do arrays with
        one entry a row (biases, gains) and neurons whose entries are all equal.

    **Returns:** the same PyTree with w ← (w - mean w) / ‖w - mean w‖ for every neuron (a row of the leading axis).
    """

    def leaf(leaf: Any) -> Any:
        return _balanced(_rows(leaf)).reshape(leaf.shape).astype(leaf.dtype) if _moves(leaf) else leaf

    return jax.tree.map(leaf, params)


def _check(learning_rate: Any, beta: Any) -> None:
    # A schedule's values in `optax.inject_hyperparams` come as arrays, and may begin or end at zero.
    given = lambda x: not (is_traced(x) or isinstance(x, jax.Array))
    positive = lambda x: is_finite(x) and x > 0
    if given(learning_rate) and not (callable(learning_rate) or positive(learning_rate)):
        raise ValueError(f"learning_rate: expected a positive finite number or a schedule, got {learning_rate!r}")
    if given(beta) and not (is_finite(beta) and 0 <= beta < 1):
        raise ValueError(f"beta: expected a number in [0, 1), got {beta!r}")


def _moves(leaf: Any) -> bool:
    return eqx.is_inexact_array(leaf) and leaf.size > 0


def _rows(leaf: Any) -> Any:
    """One neuron a row. In single precision at least: β = 0.999 is 1 in bfloat16."""
    rows = leaf.reshape(leaf.shape[0], -1) if leaf.ndim > 1 else leaf.reshape(-1, 1)
    return rows.astype(jnp.float32) if jnp.finfo(rows.dtype).bits < 32 else rows


def _norms(rows: Any) -> Any:
    """Shape (neurons, 1). Relative to the largest entry, since squares overflow and vanish early in single precision."""
    sizes = jnp.abs(rows)
    largest = jnp.max(sizes, axis=1, keepdims=True)
    return largest * jnp.sqrt(jnp.sum((sizes / _or_one(largest)) ** 2, axis=1, keepdims=True))


def _average(before: Any, norm: Any, beta: Any, steps: Any) -> Any:
    """√((1 - a) before² + a norm²) with a = (1 - β) / (1 - β^t): the average with its bias corrected, as the squares of
    small gradients would vanish in one that starts at zero."""
    beta = jnp.asarray(beta, norm.dtype)
    # Both differences from one rounding of β: a is 1 at the first step, to rounding.
    a = (1 - beta) / -jnp.expm1(steps.astype(norm.dtype) * jnp.log(beta))
    largest = jnp.maximum(before, norm)
    unit = _or_one(largest)
    return largest * jnp.sqrt((1 - a) * (before / unit) ** 2 + a * (norm / unit) ** 2)


def _balanced(rows: Any) -> Any:
    if rows.shape[1] == 1:
        return rows
    # From the first entry, so that equal entries give zero and not the rounding of a long sum.
    shifted = rows - rows[:, :1]
    centered = shifted - jnp.mean(shifted, axis=1, keepdims=True)
    norms = _norms(centered)
    least = _NO_DIRECTION * jnp.finfo(rows.dtype).eps * _norms(rows)
    return jnp.where(norms > least, centered / _or_one(norms), rows)


def _or_one(x: Any) -> Any:
    """A divisor: 1 in place of 0."""
    return jnp.where(x == 0, 1, x)
