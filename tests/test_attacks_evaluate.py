"""What `evaluate` reports, and that it flags what fools people."""

import functools
import json
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl.attacks import _diagnose

pytestmark = pytest.mark.usefixtures("quick_module")

W = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
X = np.random.default_rng(1).uniform(0.3, 0.7, (40, 12)).astype(np.float32)
Y = np.argmax(X @ W.T, axis=1).astype(np.int32)
Y[:2] = (Y[:2] + 1) % 5
KEY = jax.random.key(0)
FEW = {
    "apgd_ce": functools.partial(ld.attacks.apgd_ce, steps=10),
    "square": functools.partial(ld.attacks.square, queries=40),
}


def linear(x: Any) -> Any:
    return x @ jnp.asarray(W, x.dtype).T


def evaluate(function: Any, **options: Any) -> Any:
    return ld.attacks.evaluate(function, X, Y, **({"radius": 0.15, "key": KEY, "attacks": FEW, "steps": 10} | options))


def flagged(report: Any, text: str) -> bool:
    return any(text in warning for warning in report.warnings)


def test_an_honest_model_gets_no_warning_and_a_table() -> None:
    report = evaluate(linear, norm="2", radius=0.4)
    assert report.warnings == ()
    assert report.nominal_error == pytest.approx(2 / 40)
    assert report.nominal[:2].all()
    assert all(found[:2].all() for found in report.misled.values())
    assert set(report.errors) == {"noise", "apgd_ce", "square"}
    assert report.robust_error >= max(report.errors.values()) >= report.errors["noise"] >= report.nominal_error
    np.testing.assert_array_equal(
        report.worst, report.misled["noise"] | report.misled["apgd_ce"] | report.misled["square"]
    )
    decided = np.argmax(np.asarray(linear(jnp.asarray(report.examples))), axis=1)
    np.testing.assert_array_equal(decided != Y, report.worst)
    np.testing.assert_array_equal(report.examples[~report.worst], X[~report.worst])
    assert report.zero_gradients == report.non_finite_gradients == report.random_difference == 0
    assert report.clamped_error is None
    text = str(report)
    assert "  no attack     5.00\n  noise   " in text
    assert f"  worst case {100 * report.robust_error:7.2f}" in text
    assert "warnings" not in text
    plain = report.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["robust_error"] == np.mean(plain["worst"])
    assert plain["count"] == 40


def test_the_standard_set() -> None:
    attacks = ld.attacks.standard_attacks(steps=4, targets=2, queries=5)
    report = ld.attacks.evaluate(linear, X, Y, radius=8 / 255, key=KEY, attacks=attacks)
    assert list(report.errors) == ["noise", *attacks]
    assert list(attacks)[:3] == ["pgd", "apgd_ce", "apgd_t"]
    # 10 steps of 2/255 cross this ball.
    assert not flagged(report, "pgd:")


def test_short_steps_are_flagged() -> None:
    report = evaluate(linear, radius=127 / 255, norm="2", attacks={"pgd": ld.attacks.pgd})
    assert flagged(report, "pgd: 10 steps of 0.00784 travel 0.0784 at most, less than the 0.996 across the ball")


def test_masked_gradients_are_flagged() -> None:
    """Confident logits: cross entropy underflows, its gradient is exactly zero; another model's gradient is not."""
    report = evaluate(lambda x: 1e4 * linear(x), transfer=linear)
    assert report.zero_gradients > 0.9
    assert flagged(report, "is zero or has vanished at 9")
    for name in ("square", "transfer"):
        assert report.errors[name] > report.errors["apgd_ce"] + 0.1
    (masking,) = (warning for warning in report.warnings if "and by no attack that follows it" in warning)
    assert "without the function's gradient" in masking
    assert "square" in masking
    assert "transfer" in masking
    assert "warnings:\n- the gradient" in str(report)


def test_vanished_gradients_are_flagged() -> None:
    """Nothing but rounding is left of these gradients in a compiled function, and not all of it is exactly zero."""
    report = evaluate(lambda x: jnp.log(jax.nn.softmax(1e4 * linear(x)) + 1e-12))
    assert report.zero_gradients > 0.3
    assert flagged(report, "is zero or has vanished at")
    # Confident, and no smaller than the loss is.
    assert evaluate(lambda x: 20 * linear(x)).zero_gradients == pytest.approx(0, abs=0.3)


def test_masking_is_judged_over_all_that_follow_no_gradient() -> None:
    """Each of them finds an input or two that the others do not."""
    misled = {name: np.zeros(100, bool) for name in ("apgd_ce", "noise", "square", "transfer")}
    for index, name in enumerate(("noise", "square", "transfer")):
        misled[name][index] = True
    (warning,) = _diagnose.about_masking(misled, ["apgd_ce"], False, 0.02)
    assert warning.startswith(
        "3 % of the inputs were misled without the function's gradient (noise 1 %, square 1 %, tr"
    )
    assert _diagnose.about_masking(misled, ["apgd_ce"], False, 0.03) == []


def test_steps_that_are_no_numbers_say_nothing() -> None:
    assert _diagnose.short_steps({"mine": lambda f, *, steps="many", step_size=0.1: f, "numpy": np.add}, 1.0) == []


def test_rounded_inputs_are_flagged_and_a_surrogate_passes_them() -> None:
    """Rounding has a gradient of zero everywhere. The model at an early time stands for any that is smoother."""
    rounded = lambda x: linear(jnp.round(x * 32) / 32)
    report = evaluate(rounded, early=linear)
    assert report.zero_gradients == 1
    assert report.errors["early"] > report.errors["apgd_ce"] + 0.2
    assert flagged(report, "of the inputs were misled without the function's gradient (early ")
    assert report.not_tried == ("transfer",)
    assert report.own_zero_gradients is None
    through = evaluate(rounded, surrogate=linear)
    assert through.zero_gradients == 0
    assert through.own_zero_gradients == 1
    assert "(of the surrogate; 100.00 % of the function's own are zero)" in str(through)
    assert through.errors["apgd_ce"] >= report.errors["early"] - 0.05
    assert flagged(through, "the surrogate decides")
    assert through.surrogate_difference == pytest.approx(
        np.max(np.abs(rounded(X) - linear(X))) / np.max(np.abs(rounded(X))), rel=1e-4
    )
    assert "surrogate: " in str(through)


def test_a_surrogate_close_by_is_not_flagged() -> None:
    report = evaluate(lambda x: np.asarray(x) @ W.T, surrogate=linear)
    assert report.surrogate_decisions == 0
    assert report.own_zero_gradients is None  # it is no JAX function
    assert not flagged(report, "the surrogate decides")
    assert report.robust_error > 0.3


def test_random_functions_are_flagged() -> None:
    draws = np.random.default_rng(0)
    report = evaluate(lambda x: linear(x) + 0.1 * draws.normal(size=(len(x), 5)).astype(np.float32))
    assert report.random_difference > 0.01
    assert flagged(report, "two calls differ by up to")


def test_probabilities_are_flagged() -> None:
    assert flagged(evaluate(lambda x: jax.nn.softmax(linear(x))), "the outputs look like probabilities")


def test_gradients_that_are_not_finite_are_flagged() -> None:
    """The square root of exactly zero: a finite value, an infinite slope times zero."""
    report = evaluate(lambda x: linear(x) + jnp.sqrt(jnp.sum((x - x) ** 2, axis=1, keepdims=True)))
    assert report.non_finite_gradients == 1
    assert flagged(report, "is not finite at 100 % of the inputs")


def test_outputs_that_are_not_finite_are_flagged() -> None:
    report = evaluate(lambda x: jnp.where(x[:, :1] > 0.5, jnp.nan, linear(x)))
    assert report.nominal_error > 0.3
    assert flagged(report, "the outputs are not finite")
    json.dumps(report.to_dict(), allow_nan=False)


def test_the_clamp_alone_is_a_baseline() -> None:
    """Standardized images clamped to pixels: most of the error comes without any attack (as in the paper's code)."""
    standard = (X - 0.5) / 0.1
    y = np.argmax(linear(standard), axis=1)
    report = ld.attacks.evaluate(linear, standard, y, radius=0.01, key=KEY, attacks=FEW)
    assert report.nominal_error == 0
    assert report.clamped_error > 0.1
    assert flagged(report, "of the values of x lie outside of clip, and clamping alone gives an error of")
    assert "inputs clamped to the range" in str(report)


def test_no_gradient_attack_is_flagged_and_names_say_what_takes_none() -> None:
    attacks = {"mine": FEW["square"]}
    assert flagged(evaluate(linear, attacks=attacks, black_box=("mine",)), "no attack follows the function's")


def test_it_works_on_a_program() -> None:
    """On x' = 0 the prediction is x at any time."""
    system = ld.System(vector_field=lambda t, s, c: 0 * s, domain=ld.Box(-9, 9))
    x = np.array([[0.6, 0.4, 0.0], [0.3, 0.7, 0.1]], np.float32)
    y = np.array([0, 1], np.int32)
    program = ld.compile(
        system, ld.Certificate.exponential(ld.cross_entropy, 1), (x[0], 0), solver=ld.Solver(diffrax.Euler(), dt=0.5)
    )
    pgd = functools.partial(ld.attacks.pgd, step_size=0.1, steps=4)
    early = lambda x: program.predict(x, stop=0.01)
    report = ld.attacks.evaluate(
        program.predict, x, y, radius=0.15, key=KEY, attacks={"pgd": pgd}, early=early, steps=5
    )
    assert report.errors["pgd"] == report.errors["early"] == 0.5


def test_a_mesh_is_given_to_every_attack() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    given: list[Any] = []

    def mine(function: Any, x: Any, y: Any, **options: Any) -> Any:
        given.append(options["mesh"])
        return x

    attacks = {**FEW, "mine": mine}
    report = evaluate(linear, attacks=attacks, mesh=mesh)
    plain = evaluate(linear, attacks=FEW)
    assert given == [mesh]
    assert {name: report.errors[name] for name in plain.errors} == plain.errors
    with pytest.raises(ValueError, match=r"^mesh: expected a jax\.sharding\.Mesh"):
        evaluate(linear, mesh=3)


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        ({"early": FEW["apgd_ce"]}, r"attacks: expected other names than noise, early and transfer, got \['early'\]"),
        ({"mine": 3}, "attacks: expected functions by name, got dict"),
        ({}, "attacks: expected functions by name, got dict {}"),
        (
            {"mine": lambda f, x, y, **_: x + 0.2},
            "attacks: expected mine to stay within 0.15 of the inputs, got a point at 0.2",
        ),
        ({"mine": lambda f, x, y, **_: np.where(x > 0.65, 0.0, x)}, "attacks: expected mine to stay within 0.15"),
        (
            {"mine": lambda f, x, y, **_: x[:5]},
            r"attacks: expected mine to return points of shape \(40, 12\), got \(5, 12\)",
        ),
    ],
)
def test_messages(attacks: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ld.attacks.evaluate(linear, X, Y, radius=0.15, key=KEY, attacks=attacks)


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("an attack has run")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"black_box": ("sqare",)}, r"black_box: expected names of attacks, \['mine'\], got \['sqare'\]"),
        (
            {"surrogate": lambda x: x[:, :3]},
            r"surrogate: expected logits float\[1, 5\] for a batch of 1, got float32\[1,3\]",
        ),
        ({"early": lambda x: linear(np.asarray(x))}, "early: expected a function that JAX can take gradients of"),
        ({"transfer": lambda x: 0.0}, r"transfer: expected logits float\[1, 5\] for a batch of 1, got float"),
        ({"steps": 0}, "steps: expected"),
    ],
)
def test_mistakes_are_found_before_the_first_attack(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        evaluate(linear, attacks={"mine": never}, **options)


def test_messages_about_the_range() -> None:
    out = lambda f, x, y, **_: x - 0.1
    with pytest.raises(ValueError, match=r"^attacks: expected mine to stay in clip=\(0.29, 1.0\), got 0.2"):
        evaluate(linear, attacks={"mine": out}, clip=(0.29, 1.0))
    with pytest.raises(ValueError, match=r"^radius: expected a positive number"):
        evaluate(linear, radius=-1)
