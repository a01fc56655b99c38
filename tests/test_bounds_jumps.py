"""What may make a derivative another than JAX takes is found by what a result depends on, wherever it hides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import verify
from jax import lax
from jax.scipy.special import logsumexp

import lyapunov_dsl as ld
from lyapunov_dsl.bounds._jumps import doubtful

MASK = np.array([True, False, True])


class Lazy:
    """An array that is computed within the function that it is given to."""

    def __init__(self, x, function):
        self.x, self.function = x, function

    def __jax_array__(self):
        return self.function(self.x)


@jax.custom_jvp
def relu(x):
    return jnp.maximum(x, 0)


relu.defjvp(lambda x, v: (relu(*x), 0 * v[0]))


@jax.custom_jvp
def logaddexp(x, y):
    return jnp.floor(x) + y


logaddexp.defjvp(lambda x, v: (logaddexp(*x), v[0] + v[1]))


@jax.custom_jvp
def its_body(x):
    """The value of ReLU, and its derivative but for a factor."""
    return jax.jit(lambda v: jnp.maximum(v, 0.0))(x)


its_body.defjvp(lambda x, v: (its_body(*x), 1.01 * jnp.where(x[0] > 0, v[0], 0)))


def named(name, function):
    function.__name__ = function.__qualname__ = name
    return jax.jit(function)


def half_stopped(x):
    shift = lax.stop_gradient(jnp.max(x))
    return jnp.log(jnp.sum(jnp.exp(x - shift))) + jnp.max(x)


def other_half_stopped(x):
    return jnp.log(jnp.sum(jnp.exp(x - jnp.max(x)))) + lax.stop_gradient(jnp.max(x))


def stopped_total(x):
    terms = jnp.exp(x - jnp.max(x))
    return terms / lax.stop_gradient(jnp.sum(terms))


JUMPS = {
    "a lazy argument": lambda x: logsumexp(Lazy(x, jnp.floor)),
    "a function that is named so": lambda x: named("logsumexp", lambda v: jnp.round(v))(x),
    "nested in two": lambda x: jax.jit(lambda v: named("relu", lambda w: jnp.ceil(w))(v))(x),
    "its own ReLU": relu,
    "its own logaddexp": lambda x: logaddexp(x, 2 * x),
    "ReLU with a factor": its_body,
    "one side stopped": half_stopped,
    "the other side stopped": other_half_stopped,
    "the sum stopped": stopped_total,
    "stopped before": lambda x: logsumexp(x + lax.stop_gradient(x)),
    "the shift by itself": lambda x: logsumexp(x) + lax.stop_gradient(jnp.max(x)),
    "a branch": lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
    "a loop": lambda x: lax.fori_loop(0, 3, lambda _, v: jnp.floor(v) + x, x),
    "a custom gradient": jax.custom_gradient(lambda x: (jnp.sin(x), lambda g: g)),
    "in a mean": lambda x: jnp.sum(jax.nn.softmax(x) * jnp.floor(x)),
    "an index": lambda x: jnp.argmax(x).astype(x.dtype) * x,
    "a number made an integer": lambda x: x.astype(int).astype(x.dtype),
}

SMOOTH = {
    "log-sum-exp": logsumexp,
    "its gradient": jax.grad(logsumexp),
    "of a masked array": lambda x: logsumexp(jnp.where(MASK, x, -jnp.inf)),
    "along the other axis": lambda x: logsumexp(jnp.outer(x, x), axis=0),
    "softmax": jax.nn.softmax,
    "softmax of some": lambda x: jax.nn.softmax(x, where=MASK),
    "log softmax": jax.nn.log_softmax,
    "cross entropy": lambda x: logsumexp(x) - x[1],
    "ReLU and softplus": lambda x: jax.nn.relu(x) * jax.nn.softplus(x),
    "mapped": lambda x: jax.vmap(jax.nn.relu)(x) + jax.vmap(jax.vmap(jax.nn.softplus))(x[None])[0],
    "two sums": lambda x: jnp.logaddexp(x, 2 * x),
    "neither side stopped": lambda x: jnp.log(jnp.sum(jnp.exp(x - jnp.max(x)))) + jnp.max(x),
    "activations": lambda x: jax.nn.gelu(x) + jax.nn.silu(x) + jnp.tanh(x) + jax.nn.gelu(x, approximate=False),
    "powers": lambda x: jnp.sqrt(1 + x**2) / jnp.max(x) + (1 + x * x) ** 0.3 + jnp.clip(x, -1, 1),
    "quotients of quotients": lambda x: (x / (1 + x * x)) / (2 + jnp.cos(x)) + 0.5 * x * jax.nn.softmax(2 * x),
    "a constant mask": lambda x: jnp.where(MASK, x, 2 * x),
    "a loop": lambda x: lax.fori_loop(0, 3, lambda _, v: jnp.sin(v) + x, x),
}


@pytest.mark.parametrize("name", JUMPS)
def test_what_jumps_is_doubted(name):
    assert doubtful(jax.make_jaxpr(JUMPS[name])(jnp.asarray([0.5, -1.0, 2.0])))


@pytest.mark.parametrize("name", SMOOTH)
def test_what_does_not_is_not(name):
    assert not doubtful(jax.make_jaxpr(SMOOTH[name])(jnp.asarray([0.5, -1.0, 2.0])))


def test_a_potential_with_a_hidden_step_is_not_proved():
    hidden = lambda s: logsumexp(Lazy(s, lambda v: jnp.stack([jnp.floor(3 * v[0]), 0 * v[0]])))
    certificate = ld.Certificate.exponential(loss=lambda s, y: hidden(s) + 5 - 0.5 * s[0], kappa=0.05)
    system = ld.System(vector_field=lambda t, s, c: jnp.ones_like(s), domain=ld.Box(-1.0, 1.0))
    found = verify(system, certificate, np.zeros(1))
    assert not found.status.name.startswith("PROVED")
    assert "floor" in str(found)
