"""The pages about bounds: their code runs as printed, and their table names every operation that has a rule."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from pages import run, text

from lyapunov_dsl import bounds
from lyapunov_dsl._jaxprs import CALLS
from lyapunov_dsl.bounds._graph import CONTROL, TRANSLATIONS


@pytest.fixture
def unregister() -> Iterator[None]:
    """Forgets rules that a test registers."""
    known = set(TRANSLATIONS)
    yield
    for name in set(TRANSLATIONS) - known:
        del TRANSLATIONS[name]


@pytest.mark.usefixtures("quick")
def test_bounds_runs_as_printed(capsys: Any) -> None:
    names = run("docs/bounds.md")
    # What the page says is printed.
    lower, upper, assurance = capsys.readouterr().out.split()[:3]
    assert (round(float(lower), 3), round(float(upper), 3), assurance) == (0.07, 0.127, "PROVED_FLOAT")
    assert jax.grad(lambda x: jnp.maximum(x, 0.0))(0.0) == 0.5
    # The boxes that the region is cut into leave nothing out.
    assert (names["lows"].min(0) == names["low"]).all()
    assert (names["lows"].max(0) + 0.301 >= names["high"]).all()


@pytest.mark.usefixtures("unregister")
def test_add_a_rule_runs_as_printed(precision: Any, capsys: Any) -> None:
    names = run("docs/add_a_rule.md")
    assert "no rule: primitive lgamma" in capsys.readouterr().out
    # Planes are used: much closer than ranges alone.
    box = bounds.Box(jnp.array(2.4), jnp.array(2.6))
    width = {}
    for method in ("ibp", "crown"):
        found = bounds.bound(names["penalty"], box, method=method)
        width[method] = found.upper - found.lower
    assert width["crown"] < 0.4 * width["ibp"]
    # What the page says was measured.
    x = np.exp(np.random.default_rng(0).uniform(-10, 20, 2000)).astype(precision)
    for name, exact in (("lgamma", mpmath.loggamma), ("digamma", mpmath.digamma)):
        found = np.asarray(jax.jit(getattr(jax.lax, name))(x))
        expected = np.array([float(exact(float(v))) for v in x])
        assert (np.abs(found - expected) <= 14 * np.finfo(precision).eps * np.maximum(np.abs(expected), 1)).all()


def test_the_table_names_every_operation() -> None:
    table = text("docs/bounds.md").split("## Supported operations")[1]
    named = re.findall(
        r"`([\w-]+)`", "\n".join(line.split("|")[2] for line in table.splitlines() if line.startswith("|"))
    )
    # A name with a space is a rule that a translation chooses by a parameter, and no primitive.
    known = {name for name in TRANSLATIONS if " " not in name} | set(CALLS) | set(CONTROL)
    assert len(named) == len(set(named))
    assert sorted(named) == sorted(known)


@pytest.mark.usefixtures("unregister")
class TestRegister:
    def test_a_name_with_a_rule_is_refused(self) -> None:
        rule = bounds.Rule("tanh", lambda node, x: x, bounds.ulps(1))
        for name in ("tanh", "jit", "scan"):
            with pytest.raises(ValueError, match=f"expected a primitive without a rule, got '{name}'"):
                bounds.register(name, rule)

    def test_unknown_operands_make_the_result_unknown(self) -> None:
        # A range that would hide the NaN of log(-1).
        one = lambda node, x: bounds.Interval(jnp.zeros_like(x.lower), jnp.ones_like(x.upper))
        bounds.register("lgamma", bounds.Rule("lgamma", one, bounds.ulps(1)))
        box = bounds.Box(jnp.array([-1.0, 1.0]), jnp.array([1.0, 2.0]))
        for method in ("ibp", "crown-ibp", "crown"):
            found = bounds.bound(lambda x: jax.lax.lgamma(jnp.log(x)), box, method=method)
            assert found.lower[0] == -jnp.inf
            assert found.upper[0] == jnp.inf
            assert -0.1 < found.lower[1] <= 0 < 1 <= found.upper[1] < 1.1

    def test_constants_take_the_rule(self) -> None:
        rule = bounds.Rule("lgamma", lambda node, x: bounds.Interval(*map(jax.lax.lgamma, x)), bounds.ulps(64))
        bounds.register("lgamma", rule)
        box = bounds.Box(jnp.array(0.0), jnp.array(1.0))
        found = bounds.bound(lambda x, c: x * jax.lax.lgamma(c), box, jnp.array(5.0))
        assert found.lower <= 0
        np.testing.assert_allclose(found.upper, np.log(24.0), rtol=1e-3)

    def test_two_operands(self) -> None:
        # Hardly more or less than the first.
        bounds.register("nextafter", bounds.Rule("nextafter", lambda node, x, y: x, bounds.ulps(4)))
        box = bounds.Box(jnp.array([-0.5, 1.0]), jnp.array([0.5, 2.0]))
        for method in ("ibp", "crown"):
            found = bounds.bound(lambda v: jnp.nextafter(v[0], v[1]), box, method=method)
            np.testing.assert_allclose([found.lower, found.upper], [-0.5, 0.5], rtol=1e-3)

    def test_a_result_that_is_no_number_is_refused(self) -> None:
        bounds.register("clz", bounds.Rule("clz", lambda node, x: x, bounds.ulps(1)))
        box = bounds.Box(jnp.array(0.0), jnp.array(1.0))
        with pytest.raises(bounds.UnknownPrimitive, match="floating-point result"):
            bounds.bound(lambda x: jax.lax.clz((x > 0.5).astype(int)), box)
