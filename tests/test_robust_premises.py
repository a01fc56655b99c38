"""Certified radii: what is proved is what `predict` runs, and what is given is said and looked at."""

import functools
import types

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import certify_robustness

import lyapunov_dsl as ld

pytestmark = pytest.mark.usefixtures("quick")

X = np.array([[0.5, 0.1, -0.3], [0.2, 0.9, -0.4]], np.float32)
Y = np.array([0, 1], np.int32)
BOX = ld.Box(-9.0, 9.0)


def pull(t, state, context):
    return 4.0 * (context - state)


def start(x):
    return ld.Start(jnp.zeros(3, x.dtype), x)


def program_of(encoder=start, field=pull, readout=None, *, dt=0.25, horizon=1.0, **options):
    more = {} if readout is None else {"readout": readout}
    system = ld.System(input=encoder, vector_field=field, domain=BOX, horizon=horizon, **more)
    certificate = ld.Certificate.exponential(loss=ld.cross_entropy, kappa=2)
    solver = ld.Solver(diffrax.Euler(), dt=dt, **options)
    return ld.compile(system, certificate, (X[0], Y[0]), solver=solver)


def with_context(context, field):
    """A program with a context that is no PyTree of arrays, which annotations would refuse before."""
    encoder = lambda x: ld.Start(jnp.zeros(3, x.dtype), context(x))
    return eqx.tree_at(lambda p: (p.system.input, p.system.vector_field), program_of(), (encoder, field))


def certify(program, **asked):
    asked = {"radii": (0.01,), "rules": ("margin", "tube"), **asked}
    return certify_robustness(program, X, Y, **asked)


# A context that hides x.


class Same:
    """Equal to all others, as structure has to be."""

    def __init__(self, hidden):
        self.hidden = hidden

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 0


class Method(eqx.Module):
    """A module whose static field holds x."""

    held: Same = eqx.field(static=True)

    def __call__(self, v):
        return self.held.hidden * v


@jax.tree_util.register_pytree_node_class
class Own:
    """A node of a user's own, with x where structure is meant."""

    def __init__(self, held):
        self.held = held

    def tree_flatten(self):
        return (), self.held

    @classmethod
    def tree_unflatten(cls, held, _):
        return cls(held)

    def __call__(self, v):
        return self.held.hidden * v


def scaled(x, v):
    return x * v


HIDING = {
    "a bound method of an array": lambda x: jnp.diag(x).dot,
    "a closure": lambda x: lambda v: x * v,
    "a partial": lambda x: functools.partial(scaled, x),
    "a Partial of JAX over a closure": lambda x: jax.tree_util.Partial(lambda v: x * v),
    "a jitted closure": lambda x: jax.jit(lambda v: x * v),
    "a bound method of an object": lambda x: types.SimpleNamespace(f=lambda v: x * v).f,
    "an object": lambda x: Own(Same(x)),
    "a static field": lambda x: Method(Same(x)),
}


@pytest.mark.parametrize("name", HIDING)
def test_a_context_that_hides_x_is_refused(name):
    field = lambda t, s, c: 4.0 * (c(jnp.ones_like(s)) - s)
    program = with_context(HIDING[name], field)
    with pytest.raises(ValueError, match=r"vector_field: expected a function of|expected a context of floating-point"):
        certify(program)


def test_a_context_may_hold_a_partial_of_arrays_and_functions_of_jax():
    # The arrays of a `Partial` are leaves, so that they are seen to vary.
    multiply = lambda x: jax.tree_util.Partial(jnp.multiply, x)
    context = lambda x: (multiply(x), jax.nn.relu, 1.5)
    program = with_context(context, lambda t, s, c: 4.0 * (c[0](jnp.ones_like(s)) - s))
    # The margin is 0.4, and changes by √2 ε.
    assert certify(program, radii=(0.25, 0.3), rules=("margin",)).radius[0] == 0.25


class Leaving:
    """Keeps what it is called with where others find it."""

    last = None


@pytest.mark.parametrize("reader", ["field", "readout"])
def test_python_state_that_carries_x_is_refused(reader):
    box = Leaving()

    def encoder(x):
        box.last = x
        return ld.Start(jnp.zeros(3, x.dtype), 0.0 * x)

    def field(t, s, c):
        return 4.0 * ((c if reader == "readout" else box.last) - s)

    readout = (lambda s: s + box.last) if reader == "readout" else None
    what = "readout" if reader == "readout" else "vector_field"
    with pytest.raises(ValueError, match=f"{what}: expected a function of .* alone, got one that depends on x"):
        certify(program_of(encoder, field, readout))


def test_what_changes_from_trace_to_trace_is_refused():
    count = []

    def field(t, s, c):
        count.append(1)
        return (4.0 + len(count) * 1e-9) * (c - s)

    with pytest.raises(ValueError, match="computes something else when it is traced again"):
        certify(program_of(field=field))


def test_side_effects_are_refused():
    def field(t, s, c):
        jax.debug.callback(lambda v: None, s)
        return pull(t, s, c)

    with pytest.raises(ValueError, match="without side effects"):
        certify(program_of(field=field))

    def outside(t, s, c):
        return pull(t, s, jax.pure_callback(lambda v: np.asarray(v), c, c, vmap_method="sequential"))

    with pytest.raises(ValueError, match="without side effects, got pure_callback"):
        certify(program_of(field=outside))


# The steps that are taken.


@pytest.mark.parametrize(("steps", "enough"), [(7, False), (8, True)])
def test_a_solver_that_runs_out_of_steps_is_refused(steps, enough):
    if enough:
        assert certify(program_of(dt=0.125, max_steps=steps)).right.all()
        return
    with pytest.raises(ValueError, match=r"max_steps.*reach the horizon"):
        program_of(dt=0.125, max_steps=steps)


@pytest.mark.filterwarnings("ignore:the state is of bfloat16")
def test_times_that_add_up_to_another_number_of_steps_are_refused():
    # Times are added up in the type of the state, and 0.02 is no multiple of what bfloat16 knows between 1/2 and 1.
    encoder = lambda x: ld.Start(jnp.zeros(3, jnp.bfloat16), x.astype(jnp.bfloat16))
    program = program_of(encoder, dt=0.02)
    with pytest.raises(ValueError, match=r"expected 50 Euler steps of 0.02, but the solver took \d+ in bfloat16"):
        certify(program)


def test_other_solvers_and_subclasses_are_refused():
    class Half(diffrax.Euler):
        def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
            return super().step(terms, t0, 0.5 * (t0 + t1), y0, args, solver_state, made_jump)

    class Mine(ld.Solver):
        pass

    whole = program_of()
    for solver in (Mine(diffrax.Euler(), dt=0.25), ld.Solver(diffrax.Heun(), dt=0.25), ld.Solver(Half(), dt=0.25)):
        program = eqx.tree_at(lambda p: p.solver, whole, solver)
        with pytest.raises(ValueError, match=r"expected inference by Euler steps|expected a solver of type Solver"):
            certify(program)

    class Other(ld.Program if hasattr(ld, "Program") else type(whole)):
        def predict(self, x, *, stop=None):
            return -super().predict(x)

    other = Other(whole.system, whole.certificate, whole.objective, whole.solver, whole.declaration)
    with pytest.raises(ValueError, match="expected a Program made by"):
        certify(other)


# What is given.


class Quantized(eqx.Module):
    by: object = eqx.field(static=True)
    declared: float = eqx.field(static=True, default=1.0)

    def __call__(self, x):
        return ld.Start(jnp.zeros(3, x.dtype), self.by(x))

    def gain(self):
        return self.declared


def through(x):
    """Rounds, with the derivative of the identity."""
    return x + jax.lax.stop_gradient(jnp.round(2 * x) / 2 - x)


JUMPS = {
    "round": lambda x: jnp.round(2 * x) / 2,
    "floor": jnp.floor,
    "sign": jnp.sign,
    "integers": lambda x: (4 * x).astype(jnp.int8).astype(x.dtype),
    "where": lambda x: jnp.where(x > 0.1, x, 0.0),
    "straight through": through,
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_declared_gain_does_not_hide_jumps(name):
    # Where pairs in the balls meet a jump the gain is refuted; elsewhere the jump is found all the same.
    try:
        found = certify(program_of(Quantized(JUMPS[name])), radii=(1e-4,), rules=("margin",))
    except ValueError as error:
        assert "input.gain: expected a Lipschitz constant" in str(error)  # noqa: PT017
        return
    assert (found.radius == 0).all()
    if found.right.any():
        assert "no Lipschitz constant is known, as the input uses" in str(found)


def test_a_gain_is_printed_as_given_with_what_was_looked_at():
    found = certify(program_of(Quantized(jnp.tanh)), rules=("margin",))
    assert (found.radius == 0.01).all()
    (line,) = found.given
    assert line.startswith(
        "given by you: start and context change by at most 1 times the perturbation (Quantized.gain)"
    )
    assert "pairs of inputs in the balls, where it was at most" in line
    assert line in str(found)
    assert found.premises["margin"][0][0].statement == line
    # In the other norm it is not used.
    assert certify(program_of(Quantized(jnp.tanh)), rules=("margin",), norm="inf").given == ()


def test_a_gain_of_random_features():
    """Keys are no arrays of NumPy's."""
    features = lambda x: jnp.tanh(jax.random.uniform(jax.random.key(3), x.shape, jnp.float32).astype(x.dtype) * x)
    assert certify(program_of(Quantized(features)), rules=("margin",)).radius[1] == 0.01


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), np.ones(2)])
def test_a_gain_that_is_no_constant_is_refused(value):
    class Odd(Quantized):
        def gain(self):
            return value

    with pytest.raises(ValueError, match="finite number >= 0"):
        certify(program_of(Odd(jnp.tanh)))


def test_a_gain_that_pairs_refute_is_refused_with_the_pair():
    # Steep away from the example: the slope there is 0.
    steep = lambda x: jnp.maximum(100.0 * (x - jnp.asarray(X[0]).astype(x.dtype) - 0.05), 0.0)
    with pytest.raises(ValueError, match="as between the inputs"):
        certify_robustness(program_of(Quantized(steep)), X[:1], Y[:1], radii=(0.2,), rules=("margin",))


def test_a_subclass_does_not_inherit_what_was_said_of_another_call():
    class Doubled(Quantized):
        def __call__(self, x):
            return ld.Start(jnp.zeros(3, x.dtype), 2.0 * self.by(x))

    with pytest.raises(ValueError, match="whose __call__ it replaces"):
        certify(program_of(Doubled(jnp.tanh, 9.0)))

    class Twice(ld.nn.CayleyLinear):
        def __call__(self, x, *, key=None):
            return 2.0 * super().__call__(x)

    class Louder(ld.nn.MaxMin):
        def __call__(self, x, *, key=None):
            return 3.0 * x

    class Further(eqx.nn.Lambda):
        def __call__(self, x, *, key=None):
            return 3.0 * x

    layer = Twice(3, 3, key=jax.random.key(0))
    for other in (layer, Louder(), Further(jax.nn.relu)):
        with pytest.raises(ValueError, match=r"gain: (Twice|Louder) replaces the __call__|constant that is known"):
            ld.nn.gain(other)
    with pytest.raises(ValueError, match="plain: Twice replaces the __call__"):
        ld.nn.plain(layer)
    with pytest.raises(ValueError, match="plain: Twice replaces"):
        certify(program_of(lambda x, layer=layer: ld.Start(jnp.zeros(3, x.dtype), layer(x)), field=Held(layer)))


class Held(eqx.Module):
    layer: object

    def __call__(self, t, s, c):
        return 4.0 * (self.layer(c) - s)


def test_a_loss_does_not_inherit_a_profile():
    class Doubled(ld.CrossEntropy):
        def __call__(self, prediction, target):
            return 2.0 * super().__call__(prediction, target)

    with pytest.raises(ValueError, match="loss: Doubled replaces the __call__"):
        ld.certified_radius(loss=Doubled(), initial=0.1, kappa=1.0, lipschitz=1.0)


# What runs.


def test_a_program_that_depends_on_the_dtype_is_refused():
    by = lambda t, s, c: 4.0 * (c * (1.0 if s.dtype == jnp.float32 else 1.01) - s)
    with pytest.raises(ValueError, match=r"what is proved is not what runs: predict answers .* for example 0"):
        certify(program_of(field=by))


def test_a_module_that_stands_for_another_network_is_refused():
    class Stand(eqx.Module):
        def __call__(self, t, s, c):
            return 4.0 * (jnp.roll(c, 1) - s)

        def plain(self):
            return pull

    with pytest.raises(ValueError, match="what is proved is not what runs"):
        certify(program_of(field=Stand()))


def test_nan_is_refused_by_example():
    # In float32 the square overflows.
    readout = lambda s: s / (1.0 + 1e-60 * (1e30 * s) ** 2 * 1e0)
    with pytest.raises(ValueError, match=r"predict answers \[.*nan.*\] for example 0"):
        certify(program_of(readout=lambda s: readout(s) + 0.0 * (1e30 * s) ** 2))


def test_a_ball_in_which_the_program_overflows_is_refused():
    # Right at the example itself; farther out float32 overflows, real numbers do not.
    def readout(s):
        far = jnp.maximum(s[0] - 0.6, 0.0) * 1e21
        return s + far * far * 1e-30 * 1e-14

    program = program_of(readout=readout)
    with pytest.raises(ValueError, match=r"predict answers .* for example 0, at"):
        certify(program, radii=(0.25,), rules=("reach",))


def test_arithmetic_in_eight_bits_is_refused():
    program = program_of(lambda x: ld.Start(jnp.zeros(3, x.dtype), x.astype(jnp.float8_e4m3fn).astype(x.dtype)))
    with pytest.raises(ValueError, match="16 bits or more, got float8_e4m3fn"):
        certify(program)


def test_the_agreement_is_printed_and_counts_a_thousand_points():
    found = certify(program_of())
    assert found.agreement.points >= 1024
    assert found.agreement.largest < 1e-5 < found.agreement.allowed
    assert "predict and the network that is proved about were run at" in str(found)


# What is right, and what many steps do.


def test_rounding_does_not_grow_with_steps_that_contract():
    # Each step goes all the way to 0.9 R η + c, with R a rotation: ranges of states would grow by a factor of 3 in each of 32 steps.
    turn = 0.9 * np.array([[np.cos(0.7), -np.sin(0.7), 0], [np.sin(0.7), np.cos(0.7), 0], [0, 0, 1]])
    program = program_of(field=lambda t, s, c: 32.0 * (jnp.asarray(turn, s.dtype) @ s + c - s), dt=1 / 32)
    logits = np.asarray(program.predict(X), np.float64)
    y = logits.argmax(axis=1)
    ordered = np.sort(logits, axis=1)
    # e_N is at most ε (1 + 0.9 + ...), of which a margin changes by √2.
    steepest = np.sqrt(2) * (1 - 0.9**32) / (1 - 0.9)
    radii = np.sort((ordered[:, -1] - ordered[:, -2]) / steepest) * 0.99
    found = certify_robustness(program, X, y, radii=radii, rules=("margin",))
    assert found.right.all()
    assert sorted(found.radius) == sorted(radii)


def test_what_is_right_is_what_predict_says():
    # The network is right at both, and nothing can be proved where it turns.
    program = program_of(readout=lambda s: s + 1e3 * jnp.sin(1e3 * s[0]) * jnp.asarray([0.0, 0.0, 1.0], s.dtype))
    y = np.asarray(program.predict(X)).argmax(axis=1)
    found = certify_robustness(program, X, y, radii=(0.5,), rules=("margin",))
    assert found.right.all()
    assert (found.radius == 0).all()
    assert "right without a perturbation: 100.00 % of 2" in str(found)
    assert "UNDECIDED for 2: every margin exceeds what a perturbation changes" in str(found)
    wrong = certify_robustness(program, X, (y + 1) % 3, radii=(0.5,), rules=("margin",))
    assert not wrong.right.any()
