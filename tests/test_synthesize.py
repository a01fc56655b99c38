"""Training that is led by what a proof fails at."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl import Assurance, _synthesize, testing


class Field(eqx.Module):
    network: eqx.nn.MLP

    def __call__(self, t, state, context):
        # What has to be overcome grows away from the origin.
        return 2 * state**3 + self.network(state)


def program(objective=None):
    # Without biases it is exactly 0 at the origin, as a proof there needs.
    network = eqx.nn.MLP(2, 2, 8, 1, jnp.tanh, use_bias=False, use_final_bias=False, key=jax.random.key(0))
    field = Field(network)
    system = ld.System(vector_field=field, domain=ld.Box(-1, 1))
    certificate = ld.Certificate.exponential(lambda s: jnp.sum(s**2), 0.5)
    # Trained in the middle alone, the proof fails elsewhere.
    narrow = ld.MonteCarlo(ld.Boxes([[0.0, -0.3, -0.3]], [[1.0, 0.3, 0.3]])) if objective is None else objective
    return ld.compile(system, certificate, (jnp.zeros(2), None), objective=narrow)


X = jax.random.uniform(jax.random.key(1), (64, 2), minval=-1, maxval=1)
DECREASE = ld.Decrease(equilibrium=np.zeros(2))
PROVER = ld.Prover(boxes=20_000)


@pytest.mark.full
def test_training_goes_on_where_the_proof_failed():
    begun = program()
    how = {"optimizer": optax.adam(2e-2), "key": jax.random.key(2), "epochs": 60}
    alone = ld.synthesize(begun, (X, None), DECREASE, rounds=1, prover=PROVER, **how)
    assert alone.verification is not None
    assert alone.verification.status is Assurance.REFUTED
    led = ld.synthesize(begun, (X, None), DECREASE, rounds=8, prover=PROVER, **how)
    assert led.verification is not None
    assert led.verification.status.proved, str(led.verification)
    assert 1 < len(led.history) <= 8
    assert led.history[-1][0].proved
    assert eqx.tree_equal(led.program.objective, begun.objective)


def test_states_that_fail_are_looked_for_before_a_proof(monkeypatch, quick):
    asked = []

    def tried(*args, **options):
        asked.append(options)
        return ld.prove(*args, **options)

    monkeypatch.setattr(_synthesize, "prove", tried)
    how = {"optimizer": optax.sgd(0.0), "key": jax.random.key(2), "epochs": 1, "prover": ld.Prover(boxes=50)}
    led = ld.synthesize(program(), (X, None), DECREASE, rounds=3, **how)
    assert [status for status, _ in led.history] == [Assurance.REFUTED] * 3
    assert led.history[0][1] > 10
    assert len(asked) == 1
    # Without a proof as well.
    searched = ld.synthesize(program(), (X, None), DECREASE, rounds=2, search="counterexamples", **how)
    assert searched.verification is None
    assert [status for status, _ in searched.history] == [Assurance.REFUTED] * 2
    assert len(asked) == 1
    # Where nothing fails at the states asked about, the proof is tried at once.
    inside = ld.Decrease(equilibrium=np.zeros(2), domain=ld.Box(-0.01, 0.01), level=(5.0, 6.0))
    smaller = ld.synthesize(program(), (X, None), inside, rounds=3, **how)
    assert smaller.verification is not None
    assert smaller.verification.status.proved
    assert len(smaller.history) == 1


def test_states_that_fail_are_where_the_condition_fails():
    begun = program()
    points = _synthesize._failing(begun, begun.certificate, DECREASE.options(), None, jax.random.key(0), 4096)
    assert 0 < len(points) <= _synthesize.KEPT // 2
    condition = begun.condition
    point = condition.point(ld.Start(jnp.zeros(2)), None)
    for t, *state in points[:20]:
        (residual,) = condition.residuals(jnp.asarray(t), jnp.asarray(state, jnp.float32), point).values()
        assert float(residual) > 0
    first = DECREASE.options() | {"level": (None, 0.5)}
    inside = _synthesize._failing(begun, begun.certificate, first, None, jax.random.key(0), 4096)
    assert (np.sum(inside[:, 1:] ** 2, axis=1) <= 0.5).all()
    other = ld.PositiveDefinite(equilibrium=np.zeros(2)).options()
    assert len(_synthesize._failing(begun, begun.certificate, other, None, jax.random.key(0), 64)) == 0


def test_boxes_are_a_measure():
    low, high = np.array([[0.0, -1, -1], [0.25, 0.5, 0.5]]), np.array([[1.0, -0.5, -0.5], [0.75, 1, 1]])
    whole = program(ld.MonteCarlo())
    testing.assert_measure(ld.Boxes(low, high, 32), whole.system, ld.Start(jnp.zeros(2)), within=ld.Box(-1, 1))
    samples = ld.Boxes(low, high, 256).sample(whole.system, ld.Start(jnp.zeros(2)), key=jax.random.key(0))
    points = np.column_stack([samples.t, samples.state])
    inside = ((points[:, None] >= low) & (points[:, None] <= high)).all(-1)
    assert inside.any(1).all()
    assert inside.any(0).all()


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="Boxes: expected finite low <= high"):
        ld.Boxes([[0.0, 1.0]], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="Boxes: expected ends of a time and 2 states"):
        program(ld.MonteCarlo(ld.Boxes([[0.0, 1.0]], [[1.0, 2.0]])))
    for wrong, message in (
        ({"weight": 0.0}, "weight: expected"),
        ({"rounds": 0}, "rounds: expected"),
        ({"search": "luck"}, "search: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            ld.synthesize(program(), (X, None), DECREASE, optimizer=optax.adam(1e-2), key=jax.random.key(0), **wrong)
