"""The data-controlled neural ODE: the input is a matrix inside the dynamics."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from .._system import Start
from .._types import check_sizes, is_finite
from ._blocks import check_positive


class ControlledStart(eqx.Module):
    """An input module: η(0) = 0, and as context the matrix A(x) that the input puts into the dynamics.

    A(x) = scale · encoder(x), reshaped to (hidden, hidden). It goes with [`lyapunov_dsl.nn.ControlledField`][].

    **Arguments:**

    - `encoder`: x -> vector of length hidden², such as `ResNet18(shape, hidden**2, key=key)`.
    - `classes`: the length of the state.
    - `hidden`: rows and columns of A.
    - `scale`: a number > 0, by default 1/√hidden, with which A(x) a is about as large as a for an encoder whose outputs
        are of size one. The paper's own code has 1.

    **Raises:** `ValueError` for an encoder that is not callable, sizes that are no positive whole numbers, a scale that is
    not positive, and, when it is called, an encoder whose output is not of length hidden².
    """

    encoder: Callable
    classes: int = eqx.field(static=True)
    hidden: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)

    def __init__(self, encoder: Any, classes: Any, hidden: Any = 128, *, scale: Any = None):
        if not callable(encoder):
            raise ValueError(f"encoder: expected a callable x -> vector, got {encoder!r}")
        check_sizes(classes=classes, hidden=hidden)
        scale = 1 / math.sqrt(hidden) if scale is None else scale
        check_positive(scale=scale)
        self.encoder, self.classes, self.hidden, self.scale = encoder, int(classes), int(hidden), float(scale)

    def __call__(self, x: Any) -> Start:
        """One input to its start."""
        vector = self.encoder(x)
        if vector.shape != (self.hidden**2,):
            raise ValueError(
                f"encoder: expected a vector of length hidden**2 = {self.hidden**2}, got an output of shape {vector.shape}"
            )
        matrix = rearrange(self.scale * vector, "(row column) -> row column", row=self.hidden)
        return Start(jnp.zeros(self.classes, vector.dtype), matrix)


class ControlledField(eqx.Module):
    """w = W2 b + b2 with b = act(A(x) a), a = act(W1 η + b1): a dense field with the input's matrix in its middle.

    It does not depend on the time. By itself it is unbounded; as the `inner` of [`lyapunov_dsl.nn.InvariantField`][] it
    keeps H invariant, and it is the network inside [`lyapunov_dsl.nn.PaperField`][].

    Under `vmap` over a batch of matrices and states shared by the batch (as
    [`lyapunov_dsl.MonteCarlo`][] has it with `Cube` or `Sphere`), a is computed once for every state, and A a is one matrix
    product over the batch and the states: no matrix is copied for a state.

    **Arguments:**

    - `state`: the length of the state.
    - `hidden`: rows and columns of A.
    - `activation`: both act; by default a `eqx.nn.PReLU` for each, with one trainable slope.
    - `dropout`: the probability of dropping an entry of a and of b in training, in [0, 1). The field then needs `key`,
        which training gives it: one for each example, the same for all its states.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for sizes that are no positive whole numbers or a probability outside [0, 1).
    """

    of_state: eqx.nn.Linear
    last: eqx.nn.Linear
    activations: tuple[Callable, Callable]
    dropout: eqx.nn.Dropout

    def __init__(
        self, state: Any, hidden: Any = 128, *, activation: Callable | None = None, dropout: Any = 0.0, key: Any
    ):
        check_sizes(state=state, hidden=hidden)
        if not (is_finite(dropout) and 0 <= dropout < 1):
            raise ValueError(f"dropout: expected a probability in [0, 1), got {dropout!r}")
        k1, k2 = jax.random.split(key)
        self.of_state = eqx.nn.Linear(state, hidden, key=k1)
        self.last = eqx.nn.Linear(hidden, state, key=k2)
        self.activations = (eqx.nn.PReLU(), eqx.nn.PReLU()) if activation is None else (activation, activation)
        self.dropout = eqx.nn.Dropout(float(dropout))

    def __call__(
        self, t: Any, state: Float[Array, " k"], context: Float[Array, "h h"], *, key: Any = None
    ) -> Float[Array, " k"]:
        """The velocity at one state, for one input's matrix."""
        k1, k2 = (None, None) if key is None else jax.random.split(key)
        before, after = self.activations
        hidden = self.dropout(before(self.of_state(state)), key=k1)
        hidden = self.dropout(after(context @ hidden), key=k2)
        return self.last(hidden)
