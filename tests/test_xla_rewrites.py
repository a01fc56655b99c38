"""What the installed XLA makes of small programs, against the table of docs/proofs.md: a rewrite that is not in it has to be
looked at, and the rules of bounds with it, before anything that rests on them is called proved."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lyapunov_dsl import bounds

F = np.float32
C, D, P = F(1e10), F(1e20), F(2.0**-40)
V = np.array([1e10, 2e10, 3e10], F)

# Operations that move numbers, or only frame others.
PLAIN = {"broadcast", "bitcast", "copy", "reshape", "transpose", "slice", "opt-barrier"}
COMMUTE = {"add", "multiply", "maximum", "minimum"}
SHORT = {"add": "+", "multiply": "*", "subtract": "-", "divide": "/"}


def computations(text: str) -> tuple[dict[str, dict[str, tuple[str, list[str], str]]], dict[str, str], str]:
    """The computations of HLO text: {name: {instruction: (operation, operands, the rest)}}, their roots, and the entry."""
    found: dict[str, dict[str, tuple[str, list[str], str]]] = {}
    roots: dict[str, str] = {}
    here = entry = ""
    for line in text.splitlines():
        header = re.match(r"\s*(ENTRY )?%?([\w.\-]+)( \(.*)? \{$", line)
        if header and " = " not in line and not line.startswith("HloModule"):
            here = header[2]
            found[here] = {}
            entry = here if header[1] else entry
            continue
        match = re.match(r"\s*(ROOT )?%?([\w.\-]+) = \(?[\w\[\],{}/*= ]+?\)? ([\w\-]+)\((.*)$", line)
        if not match or not here:
            continue
        depth, end = 1, len(match[4])
        for place, letter in enumerate(match[4]):
            depth += letter in "({"
            depth -= letter in ")}"
            if depth == 0:
                end = place
                break
        inside, rest = match[4][:end], match[4][end + 1 :]
        parts = [inside] if match[3] == "constant" else re.split(r", (?![^{\[]*[}\]])", inside)
        found[here][match[2]] = (
            match[3],
            [p if match[3] == "constant" else p.split(" ")[-1].lstrip("%") for p in parts],
            rest,
        )
        if match[1]:
            roots[here] = match[2]
    return found, roots, entry


def number(text: str) -> str:
    values = re.findall(r"-?(?:inf|nan|true|false|\d+\.?\d*(?:e[+-]?\d+)?)", text)
    shown = sorted({v if v in ("true", "false") else f"{float(v):.4g}" for v in values})
    return shown[0] if len(shown) == 1 else "{" + ", ".join(shown) + "}"


def expression(text: str) -> str:
    """What a module evaluates, as one expression of its parameters and constants."""
    found, roots, entry = computations(text)

    def read(where: str, name: str, args: list[str]) -> str:
        op, operands, rest = found[where][name]
        if op == "parameter":
            return args[int(operands[0])]
        if op == "constant":
            return number(operands[0])
        inner = [read(where, operand, args) for operand in operands if operand]
        called = re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", rest)
        if op in ("fusion", "call"):
            assert called is not None
            return read(called[1], roots[called[1]], inner)
        if op in PLAIN:
            return inner[0]
        if op in COMMUTE:
            inner.sort()
        if op in SHORT:
            return f"({inner[0]} {SHORT[op]} {inner[1]})"
        if op in ("reduce", "reduce-window"):
            assert called is not None
            return f"{found[called[1]][roots[called[1]]][0]}_over({inner[0]})"
        detail = re.search(r"direction=(\w+)", rest)
        return f"{op}{'_' + detail[1] if detail else ''}({', '.join(inner)})"

    return read(entry, roots[entry], ["x", "y", "z", "w"])


# Name as in the docs: (program, what else than the written XLA may make of it). Values of the jit are held against bounds.
Case = tuple[Callable[..., Any], tuple[str, ...]]
SCALARS: dict[str, Case] = {
    "(x c)(y d)": (lambda x, y: (x * C) * (y * D), ("((x * y) * 1e+30)",)),
    "(x c) y": (lambda x, y: (x * C) * y, ()),
    "((x c) y) d": (lambda x, y: ((x * C) * y) * D, ()),
    "(x c) d": (lambda x, y: x * C * D, ("(1e+30 * x)",)),
    "-(x c) d": (lambda x, y: (-(x * C)) * D, ()),
    "((x c)(y d))(x c)": (lambda x, y: ((x * C) * (y * D)) * (x * C), ("(((x * y) * x) * inf)",)),
    "x / c": (lambda x, y: x / C, ("(1e-10 * x)",)),
    "x / c / d": (lambda x, y: x / C / D, ("(1e-30 * x)",)),
    "(x / c)(y / d)": (lambda x, y: (x / C) * (y / D), ("((x * y) * 1e-30)",)),
    "(x / y) c": (lambda x, y: (x / y) * C, ()),
    "(c / x)(d / y)": (lambda x, y: (C / x) * (D / y), ()),
    "(x c)^2": (lambda x, y: lax.square(x * C), ("((x * x) * 1e+20)",)),
    "(x c)^3": (lambda x, y: lax.integer_pow(x * P, 3), ("(((x * x) * x) * 7.523e-37)",)),
    "(x c)^-2": (lambda x, y: lax.integer_pow(x * C, -2), ("(1 / ((x * x) * 1e+20))",)),
    "reshape(x c) d": (lambda x, y: lax.reshape(x * C, (1, 1)) * D, ("(1e+30 * x)",)),
    "broadcast(x c) broadcast(y d)": (
        lambda x, y: lax.broadcast(x * C, (3,)) * lax.broadcast(y * D, (3,)),
        ("((x * y) * 1e+30)",),
    ),
    "stack([x c, y])[0] d": (lambda x, y: jnp.stack([x * C, y])[0] * D, ("(1e+30 * x)",)),
    "x p + y p": (lambda x, y: x * P + y * P, ("((x + y) * 9.095e-13)",)),
    "x p - y p": (lambda x, y: x * P - y * P, ()),
    "x c + y c": (lambda x, y: x * C + y * C, ()),
    "(x p + y p)(y c)": (lambda x, y: (x * P + y * P) * (y * C), ("(((x + y) * y) * 0.009095)",)),
    "x y + x z": (lambda x, y: x * y + x * (y + F(1)), ()),
    "x / y + z / y": (lambda x, y: x / y + (x + F(1)) / y, ()),
    "(x + c) + d": (lambda x, y: (x + C) + D, ("(1e+20 + x)",)),
    "(x - c) + d": (lambda x, y: (x - C) + D, ("(1e+20 + x)", "((-1e+10 + x) + 1e+20)")),
    "(c - x) - d": (lambda x, y: (C - x) - D, ("(-1e+20 - x)",)),
    "c - (x + d)": (lambda x, y: C - (x + D), ()),
    "(x + c) + (y + d)": (lambda x, y: (x + C) + (y + D), ()),
    "((x + c) + y) + d": (lambda x, y: ((x + C) + y) + D, ()),
    "(x + y) - y": (lambda x, y: (x + y) - y, ()),
    "x - x": (lambda x, y: x - x, ()),
    "x / x": (lambda x, y: x / x, ()),
    "x * 0": (lambda x, y: x * F(0), ()),
    "x * 1": (lambda x, y: x * F(1), ("x",)),
    "(-x)(-y)": (lambda x, y: (-x) * (-y), ("(x * y)",)),
    "|x| |x|": (lambda x, y: abs(x) * abs(x), ("(x * x)",)),
    "(x / y) / z": (lambda x, y: (x / y) / (x + F(1)), ("(x / ((1 + x) * y))",)),
    "x / (y / z)": (lambda x, y: x / (y / (x + F(1))), ("(((1 + x) * x) / y)",)),
    "((x / y) / z) / w": (
        lambda x, y: ((x / y) / (x + F(1))) / (y + F(1)),
        ("(x / (((1 + x) * y) * (1 + y)))", "(x / ((1 + y) * ((1 + x) * y)))"),
    ),
    "((x / y) z) / w": (lambda x, y: ((x / y) * (x + F(1))) / (y + F(1)), ()),
    "1 / (1 / x)": (lambda x, y: 1 / (1 / x), ("x",)),
    "c / (d / x)": (lambda x, y: C / (D / x), ("(1e-10 * x)", "((1e+10 * x) * 1e-20)", "((1e+10 * x) / 1e+20)")),
    "x^-1 / y": (lambda x, y: lax.integer_pow(x, -1) / y, ("(1 / (x * y))",)),
    "exp(x) exp(y)": (lambda x, y: jnp.exp(x) * jnp.exp(y), ("exponential((x + y))",)),
    "exp(x) / exp(y)": (lambda x, y: jnp.exp(x) / jnp.exp(y), ("exponential((x - y))",)),
    "x / exp(y)": (lambda x, y: x / jnp.exp(y), ("(exponential(negate(y)) * x)", "(x * exponential(negate(y)))")),
    "exp(x)^2": (lambda x, y: lax.square(jnp.exp(x)), ("exponential((x + x))",)),
    "log(exp(x))": (lambda x, y: jnp.log(jnp.exp(x)), ("x",)),
    "exp(log(x))": (lambda x, y: jnp.exp(jnp.log(x)), ()),
    "log(sqrt(x))": (lambda x, y: jnp.log(jnp.sqrt(x)), ("(0.5 * log(x))",)),
    "log(x^c)": (lambda x, y: jnp.log(lax.pow(x, F(2.5))), ("(2.5 * log(abs(x)))",)),
    "exp(x)^c": (lambda x, y: lax.pow(jnp.exp(x), F(1.5)), ("exponential((1.5 * x))",)),
    "x / y^c": (lambda x, y: x / lax.pow(y, F(1.5)), ("(power(y, -1.5) * x)", "(x * power(y, -1.5))")),
    "x^2 by pow": (lambda x, y: lax.pow(x, F(2)), ("(x * x)",)),
    "x^3 by pow": (lambda x, y: lax.pow(x, F(3)), ("((x * x) * x)",)),
    "x^-1 by pow": (lambda x, y: lax.pow(x, F(-1)), ("(1 / x)",)),
    "x^0.5 by pow": (lambda x, y: lax.pow(x, F(0.5)), ()),
    "(x^2)^0.5 by pow": (lambda x, y: lax.pow(lax.pow(x, F(2)), F(0.5)), ("abs(x)", "power((x * x), 0.5)")),
    "sqrt(x x)": (lambda x, y: jnp.sqrt(x * x), ("abs(x)",)),
    "sqrt(|x|)^2": (lambda x, y: lax.square(jnp.sqrt(abs(x))), ("abs(x)",)),
    "x / sqrt(y)": (lambda x, y: x / jnp.sqrt(y), ("(rsqrt(y) * x)",)),
    "x / rsqrt(y)": (lambda x, y: x / lax.rsqrt(y), ("(sqrt(y) * x)",)),
    "sqrt(x) sqrt(y)": (lambda x, y: jnp.sqrt(x) * jnp.sqrt(y), ()),
    "rsqrt(x) rsqrt(x)": (lambda x, y: lax.rsqrt(x) * lax.rsqrt(x), ("(1 / x)",)),
    "logistic(x)": (lambda x, y: lax.logistic(x), ("(1 / (1 + exponential(negate(x))))",)),
    "|x c| d": (lambda x, y: abs(x * C) * D, ()),
    "max(x c, y) d": (lambda x, y: jnp.maximum(x * C, y) * D, ()),
    "max(max(x, c), d)": (lambda x, y: jnp.maximum(jnp.maximum(x, C), D), ("maximum(1e+20, x)",)),
    "max(x, x)": (lambda x, y: jnp.maximum(x, x), ("x",)),
    "where(x < y, x, x)": (lambda x, y: jnp.where(x < y, x, x), ("x",)),
    "where(x < y, x c, y c)": (lambda x, y: jnp.where(x < y, x * C, y * C), ()),
    "x == x": (lambda x, y: x == x, ()),
    "|x| >= 0": (lambda x, y: abs(x) >= 0, ("true",)),
    "optimization_barrier(x c) d": (lambda x, y: lax.optimization_barrier(x * C) * D, ()),
}
VECTORS: dict[str, Case] = {
    "x v v": (lambda x, y: x * V * V, ("(x * {1e+20, 4e+20, 9e+20})",)),
    "(x v)(y v)": (lambda x, y: (x * V) * (y * V), ("((x * y) * {1e+20, 4e+20, 9e+20})",)),
    "sum(x c) d": (lambda x, y: jnp.sum(x * C) * D, ()),
    "dot(x v, v)": (lambda x, y: (x * V) @ V, ("add_over((x * {1e+20, 4e+20, 9e+20}))",)),
    "dot(x, y)": (lambda x, y: x @ y, ("add_over((x * y))",)),
    "dot(x c, y d) of one entry": (lambda x, y: (x[:1] * C) @ (y[:1] * D), ("((x * y) * 1e+30)",)),
    "sum(x c) d of one entry": (lambda x, y: jnp.sum(x[:1] * C) * D, ("(1e+30 * x)",)),
    "sum(broadcast(sum(x)))": (lambda x, y: jnp.sum(jnp.broadcast_to(jnp.sum(x), (3,))), ("(3 * add_over(x))",)),
    "sum(-x)": (lambda x, y: jnp.sum(-x), ("negate(add_over(x))",)),
    "x / broadcast(y)": (lambda x, y: x / jnp.broadcast_to(y[0], (3,)), ("((1 / y) * x)",)),
}


@pytest.mark.parametrize("name", [*SCALARS, *VECTORS])
def test_xla_does_nothing_that_the_table_does_not_have(name: str) -> None:
    function, known = (SCALARS | VECTORS)[name]
    like = jax.ShapeDtypeStruct(() if name in SCALARS else (3,), F)
    lowered = jax.jit(function).lower(like, like)
    written, compiled = expression(lowered.as_text(dialect="hlo")), expression(lowered.compile().as_text())
    assert compiled in (written, *known), (
        f"{name}: this XLA evaluates {compiled}, which is neither what is written, {written}, nor among the known rewrites "
        f"{list(known)}. See whether the rules of lyapunov_dsl/bounds/_merge.py and _quotients.py count what it may lose, and "
        "extend the table in docs/proofs.md"
    )


def extremes(dtype: Any) -> Any:
    top = jnp.finfo(dtype).maxexp - 1
    return np.array(
        [s * 2.0 ** (top * share) for share in (-0.98, -0.6, -0.25, 0, 0.25, 0.6, 0.98) for s in (1, -1)], dtype
    )


@pytest.mark.full
@pytest.mark.parametrize("name", list(SCALARS))
def test_bounds_hold_of_what_xla_evaluates_at_the_ends_of_the_range(name: str) -> None:
    function, _ = SCALARS[name]
    x, y = (v.ravel() for v in np.meshgrid(extremes(F), extremes(F)))
    found = jax.jit(jax.vmap(lambda x, y: bounds.bound(function, bounds.Box(x, x), bounds.Box(y, y), method="ibp")))(
        x, y
    )
    lower, upper = (np.asarray(v).reshape(len(x), -1) for v in (found.lower, found.upper))
    anything = np.isinf(lower) & np.isinf(upper) & (lower < upper)
    compiled = jax.jit(function)
    for name_, values in (
        ("jit", [compiled(*map(F, p)) for p in zip(x, y, strict=True)]),
        ("eager", [function(*map(jnp.float32, p)) for p in zip(x[::7], y[::7], strict=True)]),
    ):
        at = slice(None) if name_ == "jit" else slice(None, None, 7)
        value = np.stack([np.asarray(v).reshape(-1) for v in values])
        good = anything[at] | ((lower[at] <= value) & (value <= upper[at]))
        assert good.all(), f"{name_}: {value[~good]} at {x[at][~good.all(axis=1)]}, {y[at][~good.all(axis=1)]}"


def test_the_table_of_the_docs_has_every_program() -> None:
    page = (Path(__file__).parents[1] / "docs" / "proofs.md").read_text()
    missing = [name for name in [*SCALARS, *VECTORS] if f"`{name.replace('|', chr(92) + '|')}`" not in page]
    assert not missing, f"docs/proofs.md says nothing about {missing}"


def test_what_the_model_of_rounding_assumes_of_the_compiler() -> None:
    inf, nan = F(np.inf), F(np.nan)
    assert np.isnan(jax.jit(lambda x: x - x)(inf))
    assert np.isnan(jax.jit(lambda x: x * 0)(inf))
    assert np.isnan(jax.jit(jnp.maximum)(nan, F(1)))
    assert np.isnan(jax.jit(jnp.minimum)(F(1), nan))
    assert not jax.jit(lambda x: x == x)(nan)
    # Narrower types round, though a compiler that is allowed excess precision would leave the conversions out.
    with jax.enable_x64(True):
        assert jax.jit(lambda x: x.astype(F).astype(np.float64))(np.float64(0.1)) != 0.1
