"""Random programs of many kinds: each ball that is certified is attacked, through `predict`."""

import os

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import certify_robustness

import lyapunov_dsl as ld

pytestmark = [pytest.mark.usefixtures("quick"), pytest.mark.slow]

INPUTS, STATES = 3, 3
# Seeds: of each another network, field, readout, solver and scale.
COUNT = 3 if "LYAPUNOV_DSL_REDUCED" in os.environ else 36

ACTIVATIONS = (jnp.tanh, jax.nn.relu, jax.nn.softplus, jax.nn.sigmoid, jnp.sin, jax.nn.gelu, jnp.abs)


class Encoder(eqx.Module):
    network: eqx.nn.MLP
    start: eqx.nn.Linear
    kind: int = eqx.field(static=True)

    def __init__(self, rng, key):
        activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
        self.network = eqx.nn.MLP(INPUTS, STATES, int(rng.integers(2, 9)), 1, activation, key=key)
        self.start, self.kind = eqx.nn.Linear(INPUTS, STATES, key=key), int(rng.integers(4))

    def __call__(self, x):
        context, start = self.network(x), self.start(x)
        if self.kind == 0:
            return ld.Start(jnp.zeros_like(start), context)
        if self.kind == 1:
            return ld.Start(start)
        if self.kind == 2:
            return ld.Start(start, {"net": context, "raw": x})
        return ld.Start({"a": start[:1], "b": start[1:]}, (context, None))


class Field(eqx.Module):
    network: eqx.nn.MLP
    rate: float = eqx.field(static=True)
    kind: int = eqx.field(static=True)

    def __call__(self, t, state, context):
        flat = jnp.concatenate(jax.tree.leaves(state))
        arrays = [v for v in jax.tree.leaves(context) if eqx.is_array(v)]
        c = arrays[0] if arrays else jnp.zeros_like(flat)
        goal = self.network(flat + jnp.sin(t)) if self.kind % 2 else self.network(flat + c)
        velocity = self.rate * (goal + c - flat)
        if self.kind == 2:
            velocity = velocity + 0.1 * flat * c
        return {"a": velocity[:1], "b": velocity[1:]} if isinstance(state, dict) else velocity


def readout(kind, key):
    layer = eqx.nn.Linear(STATES, 4, key=key)
    flat = lambda s: jnp.concatenate(jax.tree.leaves(s))
    return (lambda s: layer(flat(s)), lambda s: flat(s) ** 3 + flat(s), lambda s: 5.0 * jax.nn.log_softmax(flat(s)))[
        kind
    ]


def program_of(seed):
    rng, keys = np.random.default_rng(seed), jax.random.split(jax.random.key(seed), 3)
    encoder = Encoder(rng, keys[0])
    width, activation = int(rng.integers(2, 9)), ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    steps, rate = int(rng.integers(1, 6)), float(rng.choice([0.5, 2.0, 4.0]))
    field = Field(eqx.nn.MLP(STATES, STATES, width, 1, activation, key=keys[1]), rate, int(rng.integers(3)))
    scale = float(rng.choice([0.3, 1.0, 3.0]))
    encoder, field = jax.tree.map(lambda v: scale * v if eqx.is_inexact_array(v) else v, (encoder, field))
    system = ld.System(
        input=encoder, vector_field=field, readout=readout(int(rng.integers(3)), keys[2]), domain=ld.Box(-99.0, 99.0)
    )
    x = (rng.normal(size=(6, INPUTS)) * rng.choice([0.3, 1.0, 3.0])).astype(np.float32)
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=1)
    solver = ld.Solver(diffrax.Euler(), dt=1 / steps)
    program = ld.compile(system, certificate, (x[0], np.int32(0)), solver=solver)
    return program, x, np.asarray(program.predict(x)).argmax(axis=1).astype(np.int32)


def corners(rng, x, radius, norm, count):
    """Points of the balls: ends of axes, corners, and directions at random, all at the full radius."""
    step = rng.choice([-1.0, 1.0], (count, *x.shape)) if norm == "inf" else rng.normal(size=(count, *x.shape))
    step[: 2 * INPUTS] = np.concatenate([np.eye(INPUTS), -np.eye(INPUTS)])[:, None]
    if norm == "2":
        step /= np.linalg.norm(step, axis=-1, keepdims=True)
    # What rounding adds stays inside.
    return (x + radius[:, None] * step * (1 - 1e-6)).astype(np.float32)


@pytest.mark.parametrize("seed", range(COUNT))
def test_no_attack_breaks_a_certified_ball(seed):
    program, x, y = program_of(seed)
    norm = "inf" if seed % 3 == 0 else "2"
    rules = (("margin", "reach"), ("tube",), ("margin", "tube"))[seed % 3 if seed % 2 else 0]
    radii = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
    found = certify_robustness(program, x, y, radii=radii, norm=norm, rules=rules)
    assert found.right.all()
    rng = np.random.default_rng(seed)
    points = corners(rng, x, found.radius, norm, 256)
    logits = np.asarray(program.predict(points.reshape(-1, INPUTS))).reshape(len(points), len(x), -1)
    classes = np.where(found.radius > 0, logits.argmax(axis=-1), y)
    assert (classes == y).all()
    for start in range(3):
        for radius in sorted(set(found.radius) - {0.0}):
            attacked = ld.attacks.pgd(program.predict, x, y, radius=radius, norm=norm, key=jax.random.key(start))
            wrong = np.asarray(program.predict(np.asarray(attacked))).argmax(axis=-1) != y
            assert not (wrong & (found.radius >= radius)).any()
