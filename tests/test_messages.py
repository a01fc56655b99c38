"""Every static mistake says what was expected and what was got."""

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

X = np.zeros((6, 4), np.float32)
Y = np.arange(6)
ONE_HOT = np.eye(10, dtype=np.float32)[Y]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def ld() -> Iterator[Any]:
    """The library as a user imports it: under the run-time type checker of the other tests, that one would speak first."""

    def ours() -> dict[str, Any]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "lyapunov_dsl"}

    checked, finders = ours(), list(sys.meta_path)
    for name in checked:
        del sys.modules[name]
    sys.meta_path[:] = [finder for finder in finders if not type(finder).__module__.startswith("jaxtyping")]
    try:
        yield importlib.import_module("lyapunov_dsl")
    finally:
        sys.meta_path[:] = finders
        for name in ours():
            del sys.modules[name]
        sys.modules.update(checked)


def test_that_the_copy_is_unchecked_and_whole(ld: Any) -> None:
    assert not hasattr(ld.fit, "__wrapped__")
    assert isinstance(ld.Certificate.barrier(jnp.sum) & ld.Certificate.barrier(jnp.sum), ld.AllOf)


def still(t: Any, state: Any, context: Any) -> Any:
    """A field for any state."""
    return jax.tree.map(jnp.negative, state)


def step(state: Any, context: Any) -> Any:
    """A step of a discrete system."""
    return 0.5 * state


def bad_product(state: Any) -> Any:
    """A user's own mistake."""
    return state @ jnp.zeros((3, 3))


class Layered(eqx.Module):
    """A field with a layer inside."""

    layer: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return -state


def ce(ld: Any, kappa: Any = 2) -> Any:
    return ld.Certificate.exponential(loss=ld.cross_entropy, kappa=kappa)


def sq(ld: Any) -> Any:
    return ld.Certificate.exponential(loss=ld.squared_error, kappa=2)


def system(ld: Any, **changes: Any) -> Any:
    """Ten logits that the input x (four numbers) is the context of."""
    parts = {"input": lambda x: ld.Start(jnp.zeros(10), x), "vector_field": still}
    return ld.System(**{**parts, **changes})


def starting_at(ld: Any, state: Any, **changes: Any) -> Any:
    return system(ld, input=lambda x: ld.Start(state, x), **changes)


def compiled(ld: Any, declared: Any = None, certificate: Any = None, *, y: Any = 3, **options: Any) -> Any:
    declared = system(ld) if declared is None else declared
    certificate = ce(ld) if certificate is None else certificate
    return ld.compile(declared, certificate, example=(X[0], y), **options)


def discrete(ld: Any) -> Any:
    return compiled(ld, ld.DiscreteSystem(lambda x: ld.Start(jnp.zeros(10)), [step]))


def fitted(ld: Any, data: Any = (X, Y), program: Any = None, **changes: Any) -> Any:
    options = {"optimizer": optax.adam(1e-3), "epochs": 1, "key": jax.random.key(0), "progress": False}
    return ld.fit(compiled(ld) if program is None else program, data, **{**options, **changes})


def hurt(x: np.ndarray) -> np.ndarray:
    """The same inputs with a NaN in example 3."""
    x = x.copy()
    x[3, 1] = NAN
    return x


def two_parts(ld: Any) -> Any:
    """A state {'q': float32[3], 'p': float32[2]}."""
    return {"q": jnp.zeros(3), "p": jnp.zeros(2)}


# What a user writes, and words of the message: what was expected and what was got.
Mistake = tuple[Callable[[Any], Any], str]

STATE: dict[str, Mistake] = {
    "input returns an array": (
        lambda ld: compiled(ld, system(ld, input=lambda x: jnp.zeros(10))),
        r"input: expected a lyapunov_dsl\.Start\(state, context\), got float32\[10\]",
    ),
    "input returns a tuple": (
        lambda ld: compiled(ld, system(ld, input=lambda x: (jnp.zeros(10), x))),
        r"input: expected a lyapunov_dsl\.Start.*got \(float32\[10\], float32\[4\]\)",
    ),
    "an integer leaf": (
        lambda ld: compiled(ld, starting_at(ld, {"q": jnp.zeros(3), "n": jnp.zeros(2, jnp.int32)})),
        r"input: expected a state of floating-point arrays, got int32\[2\] at state\['n'\]",
    ),
    "a Python float as the state": (
        lambda ld: compiled(ld, starting_at(ld, 1.0)),
        r"input: expected a state of floating-point arrays, got float 1\.0 at state",
    ),
    "no state": (
        lambda ld: compiled(ld, starting_at(ld, None)),
        "input: expected a state with at least one number, got an empty one, None",
    ),
    "a state without leaves": (
        lambda ld: compiled(ld, starting_at(ld, {})),
        r"input: expected a state with at least one number, got an empty one, \{\}",
    ),
    "a state of size zero": (
        lambda ld: compiled(ld, starting_at(ld, jnp.zeros(0))),
        r"input: expected a state with at least one number, got an empty one, float32\[0\]",
    ),
}

FIELD: dict[str, Mistake] = {
    "wrong shape": (
        lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c: s[:3])),
        r"vector_field: expected an output like the state, float32\[10\], got float32\[3\]",
    ),
    "wrong dtype": (
        lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c: s.astype(jnp.float16))),
        r"vector_field: expected an output like the state, float32\[10\], got float16\[10\]",
    ),
    "wrong structure": (
        lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c: {"q": s})),
        r"vector_field: expected an output like the state, float32\[10\], got \{'q': float32\[10\]\}",
    ),
    "no return": (
        lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c: None)),
        r"vector_field: expected an output like the state, float32\[10\], got None",
    ),
    "missing": (
        lambda ld: ld.System(lambda x: ld.Start(x)),
        "vector_field: expected a callable, got None",
    ),
}

READOUT: dict[str, Mistake] = {
    "integers": (
        lambda ld: compiled(ld, system(ld, readout=jnp.argmax, domain=ld.Box(-3, 3))),
        r"readout: expected floating-point outputs \(logits, not decisions\), got int32\[\]",
    ),
    "a Python float": (
        lambda ld: compiled(ld, system(ld, readout=lambda s: 1.0, domain=ld.Box(-3, 3))),
        r"readout: expected floating-point outputs .* got float 1\.0",
    ),
}

LOSS: dict[str, Mistake] = {
    "target of another shape": (
        lambda ld: compiled(ld, y=jnp.zeros(2, jnp.int32)),
        r"cross_entropy: expected a target that is an integer class int\[\] or a one-hot vector float\[10\].*got int32\[2\]",
    ),
    "one-hot of another length": (
        lambda ld: compiled(ld, y=jnp.zeros(7)),
        r"cross_entropy: expected a target .* float\[10\] \(as many as the readout has logits\), got float32\[7\]",
    ),
    "float scalar target": (
        lambda ld: compiled(ld, y=3.0),
        r"cross_entropy: expected a target that is an integer class int\[\].*got float32\[\]",
    ),
    "too few classes": (
        lambda ld: compiled(ld, system(ld, readout=lambda s: s[:1], domain=ld.Box(-3, 3))),
        r"cross_entropy: expected the readout to return logits .* at least two classes, got float32\[1\]",
    ),
    "logits of two axes": (
        lambda ld: compiled(ld, system(ld, readout=lambda s: s[None], domain=ld.Box(-3, 3))),
        r"cross_entropy: expected the readout to return logits float\[classes\].*got float32\[1,10\]",
    ),
    "no target": (
        lambda ld: compiled(ld, y=None),
        "exponential: expected an example with a target for its loss, got y=None",
    ),
    "a function that returns a vector": (
        lambda ld: compiled(ld, None, ld.Certificate.exponential(lambda p, y: p, 2)),
        r"exponential: expected its value for one example to be a float\[\] scalar, got float32\[10\]",
    ),
    "a function that returns an integer": (
        lambda ld: compiled(ld, None, ld.Certificate.exponential(lambda p, y: jnp.argmax(p), 2)),
        r"exponential: expected its value for one example to be a float\[\] scalar, got int32\[\]",
    ),
    "a barrier that returns a vector": (
        lambda ld: compiled(ld, system(ld, domain=ld.Box(-3, 3)), ld.Certificate.barrier(lambda s: 1 - s), y=None),
        r"barrier: expected its value for one example to be a float\[\] scalar, got float32\[10\]",
    ),
    "not callable": (
        lambda ld: ld.Certificate.exponential(None, 2),
        r"loss: expected a Loss or a function \(prediction, target\) -> scalar, or \(prediction\) -> scalar, got None",
    ),
    "squared error of another shape": (
        lambda ld: compiled(ld, system(ld, domain=ld.Box(-3, 3)), sq(ld), y=jnp.zeros(3)),
        r"squared_error: expected a target shaped like the prediction float32\[10\], got float32\[3\]",
    ),
    "squared error of another structure": (
        lambda ld: compiled(ld, system(ld, domain=ld.Box(-3, 3)), sq(ld), y={"q": jnp.zeros(10)}),
        r"squared_error: expected a target shaped like the prediction float32\[10\], got \{'q': float32\[10\]\}",
    ),
}

DOMAIN: dict[str, Mistake] = {
    "none derivable for a linear readout": (
        lambda ld: compiled(ld, system(ld, readout=lambda s: 2 * s)),
        r"domain: expected a set H of states, such as System\(\.\.\., domain=Box\(-3, 3\)\).*got a state float32\[10\]",
    ),
    "none derivable for squared error": (
        lambda ld: compiled(ld, None, sq(ld), y=jnp.zeros(10)),
        "domain: expected a set H of states.*derived only for an exponential certificate with cross entropy",
    ),
    "none derivable for a barrier": (
        lambda ld: compiled(ld, None, ld.Certificate.barrier(lambda s: 1 - jnp.sum(s)), y=None),
        "domain: expected a set H of states",
    ),
    "none feasible for two classes": (
        lambda ld: compiled(ld, starting_at(ld, jnp.zeros(2)), y=1),
        r"half-width 0\.966.*promised from V\(0\) = log 2.*Declare a larger domain yourself, such as Box\(-1\.93, 1\.93\)",
    ),
    "actuation of one input as a vector": (
        lambda ld: compiled(
            ld, system(ld, vector_field=ld.ControlAffine(lambda t, s, c: -s, lambda t, s, c: jnp.ones(10, s.dtype)))
        ),
        r"actuation: expected an array float\[n, m\] for a state of n = 10 .*, got float32\[10\]; a single input has one column",
    ),
    "target of a reach that is a vector": (
        lambda ld: compiled(ld, system(ld, domain=ld.Box(-3, 3)), ld.Reach(lambda s: s[0], lambda s: 0.5 - s, 0.1)),
        r"reach: expected its rate for one example to be a float\[\] scalar, got float32\[10\]",
    ),
    "box of another shape": (
        lambda ld: compiled(ld, system(ld, domain=ld.Box(-np.ones(3), np.ones(3)))),
        r"domain: expected bounds that are numbers or of the state's shape, got bounds of shape \(3,\) for a state float32\[10\]",
    ),
    "box wider than the state": (
        lambda ld: compiled(ld, system(ld, domain=ld.Box(-np.ones((2, 10)), np.ones((2, 10))))),
        r"domain: expected bounds that are numbers.*got bounds of shape \(2, 10\) for a state float32\[10\]",
    ),
    "ball of another shape": (
        lambda ld: compiled(ld, system(ld, domain=ld.Ball(np.ones(3), 1.0))),
        r"domain: expected a center that is a number or of the state's shape, got a center of shape \(3,\)",
    ),
    "product that is no prefix": (
        lambda ld: compiled(
            ld, starting_at(ld, two_parts(ld), domain=ld.Product({"q": ld.Box(-1, 1)})), sq(ld), y=two_parts(ld)
        ),
        r"domain: expected a Product whose parts are a prefix of the state \{.*float32\[2\].*\}, got \{'q': 'Box'\}",
    ),
    "product for a plain state": (
        lambda ld: compiled(ld, system(ld, domain=ld.Product({"q": ld.Box(-1, 1)}))),
        r"domain: expected a Product whose parts are a prefix of the state float32\[10\], got \{'q': 'Box'\}",
    ),
    "product with a part of another shape": (
        lambda ld: compiled(
            ld,
            starting_at(
                ld, two_parts(ld), domain=ld.Product({"q": ld.Box(-np.ones(2), np.ones(2)), "p": ld.Ball(0, 1)})
            ),
            sq(ld),
            y=two_parts(ld),
        ),
        r"domain: expected bounds .* shape \(2,\) for a state float32\[3\]",
    ),
    "product of numbers": (
        lambda ld: ld.Product({"q": 1.0}),
        r"Product: expected domains, such as \{'q': Box\(-1, 1\), .*got \{'q': 1\.0\}",
    ),
    "a number": (
        lambda ld: system(ld, domain=3.0),
        r"domain: expected a Box, a Ball or a Product, got float 3\.0",
    ),
    "radius_for another loss": (
        lambda ld: ld.radius_for(ld.squared_error, 2, 10),
        r"radius_for: expected cross_entropy .* got SquaredError\(\)",
    ),
    "radius_for one class": (
        lambda ld: ld.radius_for(ld.cross_entropy, 2, 1),
        r"radius_for: expected positive kappa and horizon and at least two classes, got 2, 1\.0, 1",
    ),
    "sphere on a product": (
        lambda ld: compiled(
            ld,
            starting_at(ld, {"q": jnp.zeros(10)}, readout=lambda s: s["q"], domain=ld.Product({"q": ld.Box(-1, 1)})),
            objective=ld.MonteCarlo(ld.Sphere()),
        ),
        "Sphere: expected a radius, or a Box or Ball domain to derive it from, got Product",
    ),
}

PARTS: dict[str, Mistake] = {
    "input": (lambda ld: ld.System(3, still), "input: expected a callable, got int"),
    "vector_field": (lambda ld: ld.System(vector_field=3), "vector_field: expected a callable, got int"),
    "readout": (lambda ld: system(ld, readout=3), "readout: expected a callable, got int"),
    "discrete input": (lambda ld: ld.DiscreteSystem(3, [step]), "input: expected a callable, got int"),
    "discrete readout": (lambda ld: ld.DiscreteSystem(step, [step], 3), "readout: expected a callable, got int"),
    "a step": (lambda ld: ld.DiscreteSystem(step, [step, 3]), r"steps\[1\]: expected a callable, got int"),
    "no steps": (
        lambda ld: ld.DiscreteSystem(step),
        r"steps: expected at least one callable \(state, context\) -> state, got none",
    ),
    "steps that are no list": (
        lambda ld: ld.DiscreteSystem(step, step),
        r"steps: expected a list of callables \(state, context\) -> state, got function",
    ),
    "a step to integers": (
        lambda ld: compiled(ld, ld.DiscreteSystem(lambda x: ld.Start(x), [step, lambda s, c: jnp.zeros(3, jnp.int32)])),
        r"steps\[1\]: expected a state of floating-point arrays, got int32\[3\]",
    ),
    "h": (lambda ld: ld.Certificate.barrier(3), "h: expected a function of the state, got int 3"),
    "batch normalization": (
        lambda ld: compiled(ld, system(ld, vector_field=Layered(eqx.nn.BatchNorm(10, "batch", mode="batch")))),
        "system: expected layers without mutable state, got BatchNorm. Fold a trained BatchNorm .* or use GroupNorm or LayerNorm",
    ),
    "batch normalization in ema mode": (
        lambda ld: compiled(ld, system(ld, vector_field=Layered(eqx.nn.BatchNorm(10, "batch", mode="ema")))),
        "system: expected layers without mutable state, got BatchNorm",
    ),
    "spectral normalization": (
        lambda ld: compiled(
            ld,
            system(
                ld,
                vector_field=Layered(
                    eqx.nn.SpectralNorm(eqx.nn.Linear(3, 3, key=jax.random.key(0)), "weight", key=jax.random.key(0))
                ),
            ),
        ),
        "system: expected layers without mutable state, got SpectralNorm",
    ),
    "a state index": (
        lambda ld: compiled(ld, system(ld, vector_field=Layered(eqx.nn.StateIndex(jnp.zeros(3))))),
        "system: expected layers without mutable state, got StateIndex",
    ),
}

COMPILE: dict[str, Mistake] = {
    "example without y": (
        lambda ld: ld.compile(system(ld), ce(ld), example=(X[0],)),
        r"example: expected a pair \(x, y\) of one example without a batch axis \(y=None without targets\), got \(array",
    ),
    "example that is x": (
        lambda ld: ld.compile(system(ld), ce(ld), example=X[0]),
        r"example: expected a pair \(x, y\) .* got array",
    ),
    "example of strings": (
        lambda ld: ld.compile(system(ld), ce(ld), example=("zero", 3)),
        r"example: expected arrays or jax\.ShapeDtypeStruct, got \('zero', 3\)",
    ),
    "system": (
        lambda ld: ld.compile(3, ce(ld), (X[0], 3)),
        "system: expected a System or a DiscreteSystem, got int",
    ),
    "system and certificate swapped": (
        lambda ld: ld.compile(ce(ld), system(ld), (X[0], 3)),
        "system: expected a System or a DiscreteSystem, got Exponential",
    ),
    "certificate": (
        lambda ld: ld.compile(system(ld), "stable", (X[0], 3)),
        "certificate: expected a Certificate, got str 'stable'",
    ),
    "certificate class": (
        lambda ld: ld.compile(system(ld), ld.Exponential, (X[0], 3)),
        r"certificate: expected a Certificate, got the class Exponential \(call it\)",
    ),
    "objective": (
        lambda ld: compiled(ld, objective="monte carlo"),
        r"objective: expected an Objective such as MonteCarlo\(\), got str 'monte carlo'",
    ),
    "objective class": (
        lambda ld: compiled(ld, objective=ld.MonteCarlo),
        r"objective: expected an Objective such as MonteCarlo\(\), got the class MonteCarlo \(call it\)",
    ),
    "measure": (
        lambda ld: ld.MonteCarlo(64),
        r"measure: expected a Measure such as Trajectory\(\) or Cube\(\), got int",
    ),
    "measure class": (
        lambda ld: ld.MonteCarlo(ld.Cube),
        r"measure: expected a Measure such as .* got the class Cube \(call it\)",
    ),
    "solver": (
        lambda ld: compiled(ld, solver="tsit5"),
        r"solver: expected a diffrax solver such as diffrax\.Tsit5\(\), got str 'tsit5'",
    ),
    "solver class": (
        lambda ld: compiled(ld, solver=diffrax.Tsit5),
        r"solver: expected a diffrax solver .* got the class Tsit5 \(call it\)",
    ),
    "path integral's solver": (
        lambda ld: ld.PathIntegral(4, solver=4),
        r"solver: expected a diffrax solver such as diffrax\.Euler\(\), got int",
    ),
    "adjoint": (
        lambda ld: ld.Solver(adjoint="direct"),
        r"adjoint: expected a diffrax adjoint such as diffrax\.DirectAdjoint\(\), got str",
    ),
    "adjoint of steady states": (
        lambda ld: ld.Solver(adjoint=diffrax.ImplicitAdjoint()),
        "adjoint: ImplicitAdjoint differentiates steady states.* use RecursiveCheckpointAdjoint",
    ),
    "fixed-step solver without dt": (
        lambda ld: ld.Solver(diffrax.Euler()),
        r"solver: Euler has no error estimate to adapt its steps by; give a fixed step dt=",
    ),
    "bare fixed-step solver": (
        lambda ld: compiled(ld, solver=diffrax.Euler()),
        r"solver: Euler has no error estimate .* dt=",
    ),
    "end to end by a bare fixed-step solver": (
        lambda ld: ld.EndToEnd(diffrax.Euler()),
        r"solver: Euler has no error estimate .* dt=",
    ),
    "jumps and fixed steps": (
        lambda ld: compiled(ld, system(ld, jumps=(0.5,)), solver=ld.Solver(dt=0.1)),
        r"dt: jumps at \(0\.5,\) need steps that adapt to them; leave out dt=0\.1",
    ),
    "jumps and fixed steps in training": (
        lambda ld: compiled(ld, system(ld, jumps=(0.5,)), objective=ld.EndToEnd(ld.Solver(dt=0.1))),
        r"dt: jumps at \(0\.5,\) need steps that adapt to them",
    ),
    "Monte Carlo on a discrete system": (
        lambda ld: compiled(
            ld, ld.DiscreteSystem(lambda x: ld.Start(jnp.zeros(10)), [step]), objective=ld.MonteCarlo()
        ),
        r"MonteCarlo: expected a continuous System .* got a DiscreteSystem; use PathIntegral\(\)",
    ),
    "path integral without dynamics": (
        lambda ld: compiled(ld, ld.DiscreteSystem(lambda x: ld.Start(jnp.zeros(12)), [lambda s, c: s[:10]])),
        "steps: expected at least one step that keeps the state's shape .* got none",
    ),
    "objective scaled by NaN": (
        lambda ld: NAN * ld.MonteCarlo(),
        "objective: expected a finite number to scale by, got nan",
    ),
    "objective plus a number": (lambda ld: ld.MonteCarlo() + 3, "objective: expected an Objective, got int"),
    "an empty conjunction": (
        lambda ld: compiled(ld, None, ld.AllOf({})),
        "certificate: expected at least one part, got none",
    ),
}

COMBINATIONS: dict[str, Mistake] = {
    "conjunction with a number": (lambda ld: ce(ld) & 3, "certificate: expected a Certificate, got int 3"),
    "part": (lambda ld: ld.AllOf({"a": 3}), "a: expected a Certificate, got int"),
    "list of parts": (
        lambda ld: ld.AllOf([ce(ld)]),
        "AllOf: expected a dictionary from names to certificates, got list",
    ),
    "weight of an unknown part": (
        lambda ld: ld.AllOf({"a": ce(ld)}, {"b": 1}),
        r"weights: expected positive finite numbers for \['a'\], got b=1",
    ),
    **{
        f"AllOf weight {weight}": (
            lambda ld, weight=weight: ld.AllOf({"a": ce(ld)}, {"a": weight}),
            rf"weights: expected positive finite numbers for \['a'\], got a={weight!r}",
        )
        for weight in (0, -1, NAN, INF, "one")
    },
    **{
        f"Mixture weight {weight}": (
            lambda ld, weight=weight: ld.Mixture(ld.Cube(), weights=(weight,)),
            rf"weights: expected 1 positive finite numbers, got \({weight!r},\)",
        )
        for weight in (0, -1, NAN, INF, "one")
    },
    "Mixture weights of another number": (
        lambda ld: ld.Mixture(ld.Cube(), weights=(1, 2)),
        r"weights: expected 1 positive finite numbers, got \(1, 2\)",
    ),
    "Mixture of nothing": (lambda ld: ld.Mixture(), "Mixture: expected one or more measures, got none"),
    "Mixture of a class": (
        lambda ld: ld.Mixture(ld.Cube(), ld.Sphere),
        r"Mixture: expected one or more measures, got Cube, the class Sphere \(call it\)",
    ),
}


def _numbers(name: str, make: Callable[[Any, Any], Any], expected: str, values: Any) -> dict[str, Mistake]:
    """One mistake for each value that is not a number in range."""
    return {
        f"{name} {i}": (lambda ld, value=value: make(ld, value), f"{expected}, got .*{_essence(value)}")
        for i, value in enumerate(values)
    }


def _essence(value: Any) -> str:
    return "1" if isinstance(value, np.ndarray | jax.Array) else str(value)


NOT_POSITIVE = (0, -1.5, NAN, INF, -INF, np.ones(3), jnp.ones(1), "two", None, 1j)

NUMBERS: dict[str, Mistake] = {
    **_numbers("kappa", ce, "kappa: expected a positive finite number", NOT_POSITIVE),
    **_numbers(
        "alpha",
        lambda ld, v: ld.Certificate.barrier(jnp.sum, v),
        "alpha: expected a positive finite number",
        NOT_POSITIVE,
    ),
    **_numbers(
        "truncation",
        lambda ld, v: ld.truncated(ld.cross_entropy, v),
        "truncated: expected a finite level >= 0",
        (-0.1, NAN, INF, np.ones(3), "two", None),
    ),
    **_numbers(
        "box",
        lambda ld, v: ld.Box(v, 1),
        "Box: expected finite bounds with lower < upper",
        (1, 2, -INF, NAN, "two", None),
    ),
    **_numbers(
        "box of two",
        lambda ld, v: ld.Box(v, np.ones(2)),
        "Box: expected finite bounds with lower < upper",
        (np.array([0, 1]), np.zeros(3) - 1),
    ),
    **_numbers("ball", lambda ld, v: ld.Ball(0, v), "Ball: expected a positive finite radius", NOT_POSITIVE),
    **_numbers("ball center", lambda ld, v: ld.Ball(v, 1), "Ball: expected a finite center", (NAN, INF, "two")),
    **_numbers(
        "horizon", lambda ld, v: system(ld, horizon=v), "horizon: expected a positive finite number", NOT_POSITIVE
    ),
    **_numbers(
        "discrete horizon",
        lambda ld, v: ld.DiscreteSystem(step, [step], horizon=v),
        "horizon: expected a positive finite number",
        (0, NAN, "two"),
    ),
    **_numbers(
        "jumps",
        lambda ld, v: system(ld, jumps=(v,)),
        r"jumps: expected times in \(0, 1\)",
        (0, 1, -1, 2.5, NAN, "two", None),
    ),
    **_numbers("dt", lambda ld, v: ld.Solver(dt=v), "dt: expected a positive finite number", (0, -1, NAN, INF, "two")),
    **_numbers("rtol", lambda ld, v: ld.Solver(rtol=v), "rtol: expected a positive finite number", (0, -1, NAN, None)),
    **_numbers("atol", lambda ld, v: ld.Solver(atol=v), "atol: expected a positive finite number", (0, -1, NAN, None)),
    **_numbers(
        "max_steps",
        lambda ld, v: ld.Solver(max_steps=v),
        "max_steps: expected a positive whole number",
        (0, -1, 2.5, None),
    ),
    **_numbers(
        "confidence",
        lambda ld, v: ld.Confidence(v),
        r"confidence: expected a probability in \(0, 1\)",
        (0, 1, -1, 1.5, NAN, "two", None, np.ones(2)),
    ),
    **_numbers(
        "rate_from_decay",
        lambda ld, v: ld.rate_from_decay(v, 0.1),
        r"decay: expected the per-step decay of eq\. 16 in \(0, 1\)",
        (0, 1, -1, 2, NAN, "two", None),
    ),
    **_numbers(
        "dt of a rate", lambda ld, v: ld.rate_from_decay(0.5, v), "dt: expected a positive finite number", (0, NAN)
    ),
    **_numbers(
        "rate of a decay", lambda ld, v: ld.decay_from_rate(v, 1), "kappa: expected a positive finite number", (0, NAN)
    ),
    **_numbers("cube", lambda ld, v: ld.Cube(v), "samples: expected a positive whole number", (0, -1, 2.5)),
    **_numbers(
        "cube half-width", lambda ld, v: ld.Cube(4, v), "Box: expected finite bounds with lower < upper", (0, -1, NAN)
    ),
    **_numbers(
        "sphere radius", lambda ld, v: ld.Sphere(4, v), "radius: expected a positive finite number", (0, NAN, "two")
    ),
    **_numbers(
        "tube samples", lambda ld, v: ld.Trajectory(8, v), "samples: expected a positive whole number", (0, 2.5)
    ),
    **_numbers("tube points", lambda ld, v: ld.Trajectory(v), "points: expected a positive whole number", (0, 2.5)),
    **_numbers(
        "tube noise",
        lambda ld, v: ld.Trajectory(8, noise=v),
        "noise: expected a finite number >= 0",
        (-1, NAN, INF, None),
    ),
    **_numbers("path steps", lambda ld, v: ld.PathIntegral(v), "steps: expected a positive whole number", (0, -1, 2.5)),
}

USE: dict[str, Mistake] = {
    **_numbers(
        "stop",
        lambda ld, v: compiled(ld).predict(X, stop=v),
        r"stop: expected a time in \(0, 1\] or a Confidence",
        (0, -1, 1.5, NAN, "two", np.ones(2)),
    ),
    "stop of a trajectory": (lambda ld: compiled(ld).trajectory(X, stop=2), r"stop: expected a time in \(0, 1\]"),
    "stop of an error": (lambda ld: compiled(ld).error(X, Y, stop=2), r"stop: expected a time in \(0, 1\]"),
    "confidence without logits": (
        lambda ld: compiled(ld, starting_at(ld, two_parts(ld), domain=ld.Box(-1, 1)), sq(ld), y=two_parts(ld)).predict(
            X, stop=ld.Confidence(0.9)
        ),
        r"stop: a Confidence needs a readout of logits float\[classes\], got \{.*float32\[2\]",
    ),
    "confidence on a discrete system": (
        lambda ld: discrete(ld).predict(X, stop=ld.Confidence(0.9)),
        "stop: expected a time for a discrete system, got a Confidence",
    ),
    "stop of a discrete trajectory": (
        lambda ld: discrete(ld).trajectory(X, stop=0.5),
        "trajectory: a discrete system has its layers only; saveat and stop do not apply",
    ),
    "saveat": (
        lambda ld: compiled(ld).trajectory(X, saveat=[0.5]),
        r"saveat: expected a diffrax\.SaveAt such as SaveAt\(ts=times\), got list",
    ),
    "times not in order": (
        lambda ld: compiled(ld).potential(X, Y, times=[0.5, 0.2]),
        r"times: expected increasing times in \[0, 1\], got \[0\.5",
    ),
    "times beyond the horizon": (
        lambda ld: compiled(ld).potential(X, Y, times=[0.5, 2.0]),
        r"times: expected increasing times in \[0, 1\]",
    ),
    "potential of a discrete system": (
        lambda ld: discrete(ld).potential(X, Y, times=[0.0, 1.0]),
        "potential: expected a continuous system, got a DiscreteSystem",
    ),
    "the condition of a discrete system": (
        lambda ld: ld.assess(discrete(ld), (X, Y), only="condition"),
        "only: expected 'error', as the system is a DiscreteSystem, got 'condition'",
    ),
    "no batch axis": (
        lambda ld: compiled(ld).predict(X[0]),
        r"x: expected examples like .* float32\[4\], with one leading batch axis, got float32\[4\]",
    ),
    "inputs of another shape": (
        lambda ld: compiled(ld).predict(X[:, :3]),
        r"x: expected examples like .* float32\[4\], with one leading batch axis, got float32\[6,3\]",
    ),
    "inputs of another structure": (
        lambda ld: compiled(ld).trajectory({"x": X}),
        r"x: expected examples like .* float32\[4\].* got \{'x': float32\[6,4\]\}",
    ),
    "targets left out of the loss": (
        lambda ld: compiled(ld).loss(X, key=jax.random.key(0)),
        r"y: expected examples like the one given to compile, int32\[\].* got None",
    ),
    "loss of unequal lengths": (
        lambda ld: compiled(ld).loss(X, Y[:5], key=jax.random.key(0)),
        r"x, y: expected batch axes of equal length, got \[5, 6\]",
    ),
    "loss without a key": (
        lambda ld: compiled(ld).loss(X, Y, key=0),
        r"key: expected a PRNG key such as jax\.random\.key\(0\), got int 0",
    ),
    "norm of certify": (
        lambda ld: ld.assess(compiled(ld), (X, Y), radius=0.1, norm="1"),
        "norm: expected 'inf' or '2', got '1'",
    ),
    **_numbers(
        "radius of certify",
        lambda ld, v: ld.assess(compiled(ld), (X, Y), radius=v),
        "radius: expected a finite number >= 0",
        (-1, NAN),
    ),
    **_numbers(
        "samples of certify",
        lambda ld, v: ld.assess(compiled(ld), (X, Y), samples=v),
        "samples: expected a positive whole number",
        (0, 2.5),
    ),
    **_numbers(
        "confidence of certify",
        lambda ld, v: ld.assess(compiled(ld), (X, Y), confidence=v),
        r"confidence: expected a probability in \(0, 1\)",
        (0, 1, 95, NAN),
    ),
    "norm of pgd": (
        lambda ld: ld.attacks.pgd(jnp.negative, X, Y, norm="1"),
        "norm: expected 'inf' or '2', got '1'",
    ),
    "norm of pgd as a number": (
        lambda ld: ld.attacks.pgd(jnp.negative, X, Y, norm=2),
        "norm: expected 'inf' or '2', got 2",
    ),
    **{
        f"{name} of pgd {value}": (
            lambda ld, name=name, value=value: ld.attacks.pgd(jnp.negative, X, Y, **{name: value}),
            rf"^{name}: expected a positive (number|integer), got \w+ {value}$",
        )
        for name, value in (
            ("radius", 0),
            ("radius", NAN),
            ("step_size", -1),
            ("step_size", INF),
            ("steps", 0),
            ("steps", 2.5),
        )
    },
    "targets of pgd": (
        lambda ld: ld.attacks.pgd(jnp.negative, X, Y),
        r"cross_entropy: expected integer targets in \[0, 4\), got 4 at example 4",
    ),
    "pgd on integers": (
        lambda ld: ld.attacks.pgd(jnp.negative, X.astype(np.uint8), Y),
        r"x: expected floating-point inputs, got uint8\[6,4\]",
    ),
}


def _distributions(ld: Any) -> Any:
    return compiled(ld, y=jnp.zeros(10))


DATA: dict[str, Mistake] = {
    "unequal lengths": (
        lambda ld: fitted(ld, (X, Y[:5])),
        r"data: expected x and y with one leading batch axis of equal length, got \(float32\[6,4\], int32\[5\]\)",
    ),
    "empty": (
        lambda ld: fitted(ld, (X[:0], Y[:0])),
        "data: expected at least one example, got an empty data set",
    ),
    "inputs of another shape": (
        lambda ld: fitted(ld, (X[:, :3], Y)),
        r"data: expected examples x like the one given to compile, float32\[4\], got float32\[3\]",
    ),
    "no batch axis": (
        lambda ld: fitted(ld, (X[0], Y[0])),
        "data: expected x and y with one leading batch axis of equal length",
    ),
    "lists": (
        lambda ld: fitted(ld, (X.tolist(), Y.tolist())),
        "data: expected x and y with one leading batch axis of equal length",
    ),
    "integer inputs": (
        lambda ld: fitted(ld, (X.astype(np.int32), Y)),
        r"data: expected examples x like the one given to compile, float32\[4\], got int32\[4\]",
    ),
    "float targets": (
        lambda ld: fitted(ld, (X, Y.astype(np.float32))),
        r"data: expected examples y like the one given to compile, int32\[\], got float32\[\]",
    ),
    "no targets": (
        lambda ld: fitted(ld, (X, None)),
        r"data: expected examples y like the one given to compile, int32\[\], got None",
    ),
    "x alone": (
        lambda ld: fitted(ld, X),
        r"data: expected a pair \(x, y\) with a leading batch axis, got ndarray",
    ),
    "validation of x alone": (
        lambda ld: fitted(ld, validation=X),
        r"validation: expected a pair \(x, y\) with a leading batch axis, got ndarray",
    ),
    "validation of another shape": (
        lambda ld: fitted(ld, validation=(X[:, :3], Y)),
        r"data: expected examples x like .* float32\[4\], got float32\[3\]",
    ),
    "NaN inputs in fit": (
        lambda ld: fitted(ld, (hurt(X), Y)),
        "data: expected finite inputs, got NaN or Inf at example 3",
    ),
    "NaN inputs in error": (
        lambda ld: compiled(ld).error(hurt(X), Y),
        "data: expected finite inputs, got NaN or Inf at example 3",
    ),
    "NaN inputs in certify": (
        lambda ld: ld.assess(compiled(ld), (hurt(X), Y)),
        "data: expected finite inputs, got NaN or Inf at example 3",
    ),
    "class out of range in fit": (
        lambda ld: fitted(ld, (X, Y + 5)),
        r"cross_entropy: expected integer targets in \[0, 10\), got 10 at example 5",
    ),
    "negative class in fit": (
        lambda ld: fitted(ld, (X, Y - 1)),
        r"cross_entropy: expected integer targets in \[0, 10\), got -1 at example 0",
    ),
    "class out of range in validation": (
        lambda ld: fitted(ld, validation=(X, Y + 5)),
        r"cross_entropy: expected integer targets in \[0, 10\), got 10 at example 5",
    ),
    "class out of range in error": (
        lambda ld: compiled(ld).error(X, Y + 5),
        r"cross_entropy: expected integer targets in \[0, 10\), got 10 at example 5",
    ),
    "class out of range in certify": (
        lambda ld: ld.assess(compiled(ld), (X, Y + 5)),
        r"cross_entropy: expected integer targets in \[0, 10\), got 10 at example 5",
    ),
    "class out of range, truncated": (
        lambda ld: compiled(ld, None, ld.Certificate.exponential(ld.truncated(ld.cross_entropy, 0.1), 2)).error(
            X, Y + 5
        ),
        r"cross_entropy: expected integer targets in \[0, 10\), got 10 at example 5",
    ),
    "targets that sum to 2": (
        lambda ld: fitted(ld, (X, 2 * ONE_HOT), _distributions(ld)),
        r"cross_entropy: expected target vectors that are nonnegative and sum to 1, got \[2\. 0\.",
    ),
    "negative targets": (
        lambda ld: _distributions(ld).error(X, ONE_HOT + 0.1 - np.eye(10, dtype=np.float32)[Y + 1]),
        "cross_entropy: expected target vectors that are nonnegative and sum to 1",
    ),
    "NaN targets": (
        lambda ld: _distributions(ld).error(X, ONE_HOT * NAN),
        "cross_entropy: expected target vectors that are nonnegative and sum to 1, got .nan",
    ),
    "NaN targets of squared error": (
        lambda ld: compiled(ld, system(ld, domain=ld.Box(-3, 3)), sq(ld), y=jnp.zeros(10)).error(X, ONE_HOT * NAN),
        "squared_error: expected finite targets, got .nan.* at example 0",
    ),
    **_numbers(
        "epochs", lambda ld, v: fitted(ld, epochs=v), "epochs: expected a positive whole number", (0, -1, 1.5, None)
    ),
    **_numbers(
        "batch_size",
        lambda ld, v: fitted(ld, batch_size=v),
        "batch_size: expected a positive whole number",
        (0, -1, 1.5, None),
    ),
    "optimizer": (
        lambda ld: fitted(ld, optimizer=optax.adam),
        r"optimizer: expected an Optax GradientTransformation such as optax\.adam\(1e-3\), got function",
    ),
    "key": (
        lambda ld: fitted(ld, key=0),
        r"key: expected a PRNG key such as jax\.random\.key\(0\), got int 0",
    ),
    "program": (
        lambda ld: fitted(ld, program=system(ld)),
        r"program: expected a Program made by lyapunov_dsl\.compile, got System",
    ),
    **_numbers(
        "checkpoint_every",
        lambda ld, v: fitted(ld, checkpoint_every=v),
        "checkpoint_every: expected a number of seconds >= 0",
        (-1, NAN, INF, None),
    ),
    **_numbers(
        "steps_per_dispatch",
        lambda ld, v: fitted(ld, steps_per_dispatch=v),
        "steps_per_dispatch: expected a whole number that divides 64",
        (0, -1, 1.5, 5, 128),
    ),
    "augment": (
        lambda ld: fitted(ld, augment="flip"),
        r"augment: expected a function \(x, key\) -> x of one example, got str",
    ),
    "select": (
        lambda ld: fitted(ld, select="least"),
        r"select: expected 'last', or 'best' together with validation=\(x, y\), got 'least'",
    ),
    "select without validation": (
        lambda ld: fitted(ld, select="best"),
        r"select: expected 'last', or 'best' together with validation=\(x, y\), got 'best'",
    ),
    "save no program": (
        lambda ld: ld.save("p", system(ld)),
        r"save: expected a Program made by lyapunov_dsl\.compile, got System",
    ),
    "save to no path": (
        lambda ld: ld.save(3, compiled(ld)),
        r"path: expected a path, got int 3",
    ),
    "load from no path": (
        lambda ld: ld.load(None, compiled(ld)),
        r"path: expected a path, got None",
    ),
    "folder that is no path": (
        lambda ld: fitted(ld, folder=3),
        r"folder: expected a path, got int 3",
    ),
    "optimizer that wraps": (
        lambda ld: fitted(ld, optimizer=optax.MultiSteps(optax.adam(1e-3), 2)),
        r"got MultiSteps; call its gradient_transformation\(\)",
    ),
    "load like no program": (
        lambda ld: ld.load("p", None),
        r"load: expected a Program made by lyapunov_dsl\.compile, got None",
    ),
    "nothing to train": (
        lambda ld: fitted(ld),
        "program: expected a system with trainable arrays .* got none",
    ),
}

ALL = {
    f"{group}: {name}": mistake
    for group, mistakes in {
        "state": STATE,
        "field": FIELD,
        "readout": READOUT,
        "loss": LOSS,
        "domain": DOMAIN,
        "parts": PARTS,
        "compile": COMPILE,
        "combinations": COMBINATIONS,
        "numbers": NUMBERS,
        "use": USE,
        "data": DATA,
    }.items()
    for name, mistake in mistakes.items()
}


@pytest.mark.parametrize("mistake", ALL.values(), ids=ALL.keys())
def test_a_mistake_names_what_was_expected_and_what_was_got(mistake: Mistake, ld: Any) -> None:
    make, words = mistake
    with pytest.raises(ValueError, match=words):
        make(ld)


def test_what_the_mistakes_are_made_of_is_right(ld: Any) -> None:
    """Without a mistake, nothing is raised; otherwise the tests above could pass for the wrong reason."""
    assert isinstance(compiled(ld), ld.Program)
    assert isinstance(discrete(ld), ld.Program)
    parts = starting_at(ld, two_parts(ld), domain=ld.Box(-1, 1))
    assert isinstance(compiled(ld, parts, sq(ld), y=two_parts(ld)), ld.Program)
    euler = ld.Solver(diffrax.Euler(), dt=0.5)
    field = Linear(eqx.nn.Linear(10, 10, key=jax.random.key(0)))
    program = compiled(ld, system(ld, vector_field=field), solver=euler, objective=ld.PathIntegral(2))
    assert math.isfinite(float(jax.jit(lambda x: program.loss(x, Y, key=jax.random.key(0)))(X)))
    assert program.error(X, Y) > 0
    assert compiled(ld, y=jnp.zeros(10), solver=euler).error(X, ONE_HOT) > 0
    assert fitted(ld, program=program).status == "done"


class Linear(eqx.Module):
    """A field with something to train."""

    layer: eqx.nn.Linear

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return self.layer(state) - state


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.float64(2), np.int64(2), np.array(2.0), True])
def test_numbers_of_every_kind_are_rates(value: Any, ld: Any) -> None:
    assert float(ce(ld, value).kappa) == float(value)
    assert float(ce(ld, jnp.asarray(value)).kappa) == float(value)
    assert system(ld, horizon=value).horizon == float(value)


def test_jumps_may_be_one_number_and_out_of_order(ld: Any) -> None:
    assert system(ld, jumps=0.5).jumps == (0.5,)
    assert system(ld, jumps=[0.5, 0.25]).jumps == (0.25, 0.5)


@pytest.mark.parametrize(
    ("make", "note"),
    [
        (
            lambda ld: compiled(ld, system(ld, vector_field=lambda t, s, c: bad_product(s))),
            "raised while checking vector_field(t: float32[], state: float32[10], context: float32[4])",
        ),
        (
            lambda ld: compiled(ld, system(ld, vector_field=lambda t, s: s)),
            "raised while checking vector_field(t: float32[], state: float32[10], context: float32[4])",
        ),
        (
            lambda ld: compiled(ld, system(ld, input=bad_product)),
            "raised while checking input(x: float32[4]), called with one example without a batch axis",
        ),
        (
            lambda ld: compiled(ld, system(ld, readout=bad_product)),
            "raised while checking readout(state: float32[10])",
        ),
        (
            lambda ld: compiled(ld, None, ld.Certificate.barrier(bad_product), y=None),
            "raised while checking the value of barrier at a state float32[10]",
        ),
        (
            lambda ld: compiled(
                ld, ld.DiscreteSystem(lambda x: ld.Start(jnp.zeros(10)), [step, lambda s, c: bad_product(s)])
            ),
            "raised while checking steps[1](state: float32[10], context: None)",
        ),
    ],
    ids=["field", "field's arguments", "input", "readout", "barrier", "step"],
)
def test_an_error_of_the_users_own_code_says_what_it_was_called_with(make: Any, note: str, ld: Any) -> None:
    with pytest.raises(TypeError) as caught:
        make(ld)
    assert note in caught.value.__notes__


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("argmax", lambda s: s * jnp.argmax(s).astype(s.dtype)),
        ("round", lambda s: jnp.round(s)),
        ("sign", lambda s: jnp.sign(s)),
        ("floor", lambda s: jnp.floor(s)),
    ],
)
def test_piecewise_constant_functions_warn(name: str, function: Any, ld: Any) -> None:
    with pytest.warns(
        UserWarning, match=f"vector_field uses {name}, whose derivative is zero almost everywhere"
    ) as caught:
        ld.compile(system(ld, vector_field=lambda t, s, c: function(s)), ce(ld), (X[0], 3))
    assert caught[0].filename == __file__  # it points at the line that the user wrote
    # Also where it hides inside a jitted function.
    with pytest.warns(UserWarning, match=f"readout uses {name}, whose derivative"):
        compiled(ld, system(ld, readout=jax.jit(function), domain=ld.Box(-3, 3)))
    with pytest.warns(UserWarning, match=f"steps uses {name}, whose derivative"):
        compiled(ld, ld.DiscreteSystem(lambda x: ld.Start(jnp.zeros(10)), [lambda s, c: function(s)]))


def test_kinks_are_recorded(ld: Any) -> None:
    assert compiled(ld, system(ld, vector_field=lambda t, s, c: jnp.tanh(s))).declaration.kinks == ()
    assert compiled(ld, system(ld, vector_field=lambda t, s, c: jax.nn.relu(s))).declaration.kinks == ("max",)
    both = system(ld, vector_field=lambda t, s, c: jnp.abs(s), readout=jax.nn.relu, domain=ld.Box(-3, 3))
    assert compiled(ld, both).declaration.kinks == ("abs", "max")
    assert "piecewise smooth (abs, max)" in compiled(ld, both).summary()
    layers = ld.DiscreteSystem(lambda x: ld.Start(jnp.zeros(10)), [lambda s, c: jax.nn.relu(s)])
    assert compiled(ld, layers).declaration.kinks == ("max",)
