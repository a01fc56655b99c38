"""The dynamics of the paper's own code, to compare with."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._constant import Constant
from .._types import Scalar, check_sizes, is_traced
from ._controlled import ControlledField

_VARIANTS = ("direction", "simplex")


class PaperField(eqx.Module):
    """The data-controlled dynamics of the code that was published with the paper, for a state of C class scores.

    With w = w(η, A(x)) of [`lyapunov_dsl.nn.ControlledField`][], class corners s_c = 15 (2 e_c - 1) and D_c = s_c - η:

    - `"direction"` (that code's default): f = κ · gain · [(1/C) Σ_c |D_c| softmax_c(D_c · u)] u with u = w/|w|. Only the
        direction is learned, the speed is set by the geometry. Where |w| is 0 (or its square underflows) the field is 0.
    - `"simplex"`: f = κ · gain · (1/C) Σ_c softmax(w)_c D_c. That is κ gain/C (15 (2 softmax(w) - 1) - η): every
        convex set that holds the corners is invariant, such as the ball of radius 15 √C.

    The speed is limited, and at small gains too small for κ on most of the ball of radius 15 √C that the paper samples:
    `assess` says so, see `speed_bound`. At C = 10 it takes a gain of 5 at the wrong corners and, as far as
    a search found, of 2 √C = 6.3 on the whole ball. At large gains trajectories leave the ball. That code starts at a
    gain of 100 and lowers it in training. The gain is a [`lyapunov_dsl.Constant`][], for a schedule of one's own by
    `eqx.tree_at(lambda p: p.system.vector_field.gain, program, ld.Constant(gain))`, which does not recompile.

    **Arguments:**

    - `classes`: C, at least 2, the length of the state.
    - `variant`: `"direction"` or `"simplex"`.
    - `gain`: a number > 0.
    - `kappa`: κ > 0, by default ln(15 √C), as in that code.
    - `hidden`: rows and columns of A(x).
    - `dropout`: the probability for `ControlledField`; that code has 0.5.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for an unknown variant, fewer than two classes, sizes that are no positive whole numbers,
    numbers that are not positive, or a probability outside [0, 1).
    """

    inner: ControlledField
    gain: Constant
    kappa: Constant
    classes: int = eqx.field(static=True)
    variant: str = eqx.field(static=True)

    def __init__(
        self,
        classes: Any,
        variant: Any = "direction",
        *,
        gain: Any,
        kappa: Any = None,
        hidden: Any = 128,
        dropout: Any = 0.5,
        key: Any,
    ):
        check_sizes(classes=classes, hidden=hidden)
        if classes < 2:
            raise ValueError(f"classes: expected at least 2, got {classes!r}")
        if variant not in _VARIANTS:
            raise ValueError(f'variant: expected "direction" or "simplex", got {variant!r}')
        kappa = math.log(15 * math.sqrt(classes)) if kappa is None else kappa
        for name, number in {"gain": gain, "kappa": kappa}.items():
            if not is_traced(number) and not (np.ndim(number) == 0 and 0 < float(number) < math.inf):
                raise ValueError(f"{name}: expected a positive finite number, got {number!r}")
        self.inner = ControlledField(classes, hidden, dropout=dropout, key=key)
        self.gain, self.kappa = Constant(gain), Constant(kappa)
        self.classes, self.variant = int(classes), variant

    def _rate(self, dtype: Any) -> Scalar:
        return self.kappa(dtype) * self.gain(dtype) / self.classes

    def _distances(self, state: Float[Array, " k"]) -> Float[Array, " k"]:
        """|D_c| for every class; the root has no derivative at 0."""
        corners = 15 * (2 * jnp.eye(self.classes, dtype=state.dtype) - 1)
        squares = jnp.sum(jnp.square(corners - state[None]), axis=1)
        return _root(squares)

    def speed_bound(self, t: Any, state: Float[Array, " k"], context: Any) -> Scalar:
        """κ gain max_c |D_c| / C, in the 2-norm, whatever the weights. [`lyapunov_dsl.assess`][] asks for it.

        Proof: softmax is a set of convex weights p_c. In the direction variant |f| = κ gain/C · Σ_c p_c |D_c| (or 0), in the
        simplex variant |f| = κ gain/C · |Σ_c p_c D_c| <= κ gain/C · Σ_c p_c |D_c|, and a weighted mean is at most the largest.
        """
        # Tight: the simplex variant comes as close as one likes with p -> e_c. The direction variant has, at u = e_c,
        # p_c = 1 / (1 + (C - 1) exp(-30)), because D_c · u - D_j · u = 15 (2 u_c - 2 u_j): at 10 classes within 1e-12 of it.
        return self._rate(state.dtype) * jnp.max(self._distances(state))

    def __call__(
        self, t: Any, state: Float[Array, " k"], context: Float[Array, "h h"], *, key: Any = None
    ) -> Float[Array, " k"]:
        """The velocity at one state, for one input's matrix."""
        raw, rate = self.inner(t, state, context, key=key), self._rate(state.dtype)
        if self.variant == "simplex":
            # Σ_c p_c s_c = 15 (2 p - 1), as the weights sum to 1.
            return rate * (15 * (2 * jax.nn.softmax(raw) - 1) - state)
        squared = jnp.sum(jnp.square(raw))
        direction = raw * jnp.where(squared > 0, jax.lax.rsqrt(jnp.where(squared > 0, squared, 1)), 0)
        # D_c · u = 30 u_c minus what is the same for every class, and softmax does not see that.
        weights = jax.nn.softmax(30 * direction)
        return rate * jnp.sum(weights * self._distances(state)) * direction


def _root(squares: Array) -> Array:
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)
