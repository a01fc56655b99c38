"""Norms and Lipschitz constants: never below the truth, and hardly above it where it is known."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lyapunov_dsl import bounds
from lyapunov_dsl.bounds import _norms as norms

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(params=[False, True], ids=["float32", "float64"])
def wide(request):
    with jax.enable_x64(request.param):
        yield 2.0**-52 if request.param else 2.0**-23


def known(singular, shape, seed=0, size=1.0):
    """A matrix of integers times a power of two with a norm that is known: a rotation of a diagonal one by Hadamard matrices."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.normal(size=(shape[0], len(singular))))
    v, _ = np.linalg.qr(rng.normal(size=(shape[1], len(singular))))
    return size * (u * np.asarray(singular)) @ v.T


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 1), (1, 6)])
@pytest.mark.parametrize("size", [1.0, 1e-9, 3e7])
def test_the_largest_singular_value(wide, shape, size):
    count = min(shape)
    for singular in (np.linspace(2, 1, count), np.full(count, 2.0), 2.0 * np.eye(count)[0]):
        a = known(singular, shape, size=size).astype(np.float32 if wide > 1e-10 else np.float64)
        true = np.linalg.norm(a.astype(np.float64), 2)
        found = float(norms.spectral_norm(a))
        assert true * (1 - 1e-14) <= found <= true * (1 + 1e-3)
        assert float(norms.spectral_norm(a, 1)) >= true * (1 - 1e-14)
        assert float(norms.spectral_norm(a, 0)) == pytest.approx(np.linalg.norm(a.astype(np.float64)), rel=1e-4)


@pytest.mark.slow
def test_norms_that_are_known_exactly_are_not_below(wide):
    # Ones, and a Hadamard matrix: 7 and √8.
    ones = np.ones((7, 7))
    hadamard = np.array([[(-1) ** bin(i & j).count("1") for j in range(8)] for i in range(8)], float)
    for a, square in (
        (ones, 49),
        (hadamard, 8),
        (hadamard[:3], 8),
        (3 * np.eye(5), 9),
        (np.array([[3.0, 4.0]]), 25),
        (np.array([[1e-3]]), None),
    ):
        exact = Fraction(square) if square else Fraction(float(np.float32(1e-3) if wide > 1e-10 else 1e-3)) ** 2
        found = Fraction(float(norms.spectral_norm(a.astype(np.float32) if wide > 1e-10 else a)))
        assert exact <= found**2 <= exact * (1 + Fraction(1, 300))
    assert float(norms.spectral_norm(np.zeros((3, 2), np.float32))) == 0
    assert float(norms.spectral_norm(np.array([[1.0, np.inf]], np.float32))) == np.inf
    assert float(norms.spectral_norm(np.array([[1.0, np.nan]], np.float32))) == np.inf
    least = np.finfo(np.float32 if wide > 1e-10 else np.float64).tiny
    assert float(norms.spectral_norm(jnp.asarray([[least / 4]]))) >= least / 4
    # Given in float64 and computed in float32, it is rounded up.
    for value in (1 / 3, 0.1, 7.3):
        assert Fraction(float(norms.spectral_norm(np.array([[value]])))) >= Fraction(value)


@pytest.mark.slow
def test_norms_of_jacobians_between_two(wide):
    rng = np.random.default_rng(0)
    for shape in ((3, 4), (1, 5), (4, 1)):
        middle, half = rng.normal(size=shape), rng.uniform(0, 0.2, shape)
        half[0, 0] = 0
        lower, upper = (jnp.asarray(v) for v in (middle - half, middle + half))
        found = {norm: float(norms.jacobian_norm(lower, upper, norm)) for norm in ("2", "inf", ("2", "inf"))}
        for _ in range(200):
            a = np.asarray(lower, np.float64) + rng.integers(0, 2, shape) * np.asarray(upper - lower, np.float64)
            assert np.linalg.norm(a, 2) <= found["2"] * (1 + 1e-6)
            assert np.abs(a).sum(1).max() <= found["inf"] * (1 + 1e-6)
            assert np.linalg.norm(a, axis=1).max() <= found["2", "inf"] * (1 + 1e-6)
        largest = np.maximum(np.abs(lower), np.abs(upper)).astype(np.float64)
        assert found["inf"] == pytest.approx(largest.sum(1).max(), rel=1e-5)
        assert found["2", "inf"] == pytest.approx(np.linalg.norm(largest, axis=1).max(), rel=1e-5)
        rest = math.sqrt(half.sum(1).max() * half.sum(0).max())
        assert found["2"] <= min(np.linalg.norm(middle, 2) + rest, np.linalg.norm(largest, 2)) * (1 + 1e-3)
        for norm in found:
            assert float(norms.jacobian_norm(lower.at[0, 0].set(-np.inf), upper, norm)) == np.inf
            assert float(norms.jacobian_norm(lower, upper.at[0, 0].set(np.nan), norm)) == np.inf
            assert float(norms.jacobian_norm(0 * lower, 0 * lower, norm)) <= 1e-30
    thirds = jnp.full((1, 3), 1 / 3)
    exact = Fraction(float(thirds[0, 0]))
    assert Fraction(float(norms.jacobian_norm(thirds, thirds, "inf"))) >= 3 * exact
    assert Fraction(float(norms.jacobian_norm(thirds, thirds, ("2", "inf")))) ** 2 >= 3 * exact**2


def dense(kernel, n):
    """A convolution of images of side n, padded by zeros on all sides, as a matrix."""
    _, inputs, h, w = kernel.shape
    image = np.eye(inputs * n * n).reshape(-1, inputs, n, n)
    out = jax.lax.conv_general_dilated(
        jnp.asarray(image, jnp.float32), jnp.asarray(kernel, jnp.float32), (1, 1), [(h - 1, h - 1), (w - 1, w - 1)]
    )
    return np.asarray(out, np.float64).reshape(len(image), -1)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (1, 2, 4, 1)])
def test_norms_of_convolutions(shape):
    rng = np.random.default_rng(1)
    for kernel in (rng.normal(size=shape), np.ones(shape)):
        kernel = kernel.astype(np.float32)
        for n in (4,):
            true = np.linalg.norm(dense(kernel, n), 2)
            padded = n + 2 * (max(shape[2:]) - 1)
            assert true <= float(norms.convolution_norm(kernel, padded)) * (1 + 1e-6)
            assert true <= float(norms.convolution_norm(kernel)) * (1 + 1e-6)
        # Images of any size reach the largest frequency.
        waves = [np.exp(2j * np.pi * k / 64 * np.arange(max(shape[2:]))) for k in range(64)]
        top = max(
            np.linalg.norm(np.einsum("oihw,h,w->oi", kernel, a[: shape[2]], b[: shape[3]]), 2)
            for a in waves
            for b in waves
        )
        found = float(norms.convolution_norm(kernel))
        assert top <= found * (1 + 1e-6)
        between = math.prod(1 / math.cos(math.pi * (k // 2) / (8 * max(shape[2:]))) for k in shape[2:])
        assert found <= top * between * 1.05 + 1e-6
    assert float(norms.convolution_norm(np.zeros(shape, np.float32))) == 0
    assert float(norms.convolution_norm(np.full(shape, np.inf, np.float32))) == np.inf


def test_products_are_rounded_up():
    rng = np.random.default_rng(2)
    for factors in [*rng.uniform(0, 3, (50, 3)).tolist(), [1e300, 1e-300], [1e-200, 1e-200, 1e300], [0.0, 1.0]]:
        exact = math.prod(map(Fraction, factors))
        assert exact <= Fraction(norms._product(factors)) <= exact * (1 + Fraction(1, 2**51)) + Fraction(1, 2**1073)
    assert norms._product([1e300, 1e300]) == math.inf
    assert norms._product([math.inf, 0.0]) == math.inf
    assert norms._product([0.0, 2.0]) == 0


def slopes_of(weights, slopes, count=300):
    """Norms of Jacobians of a stack for slopes anywhere between the two."""
    rng, found = np.random.default_rng(3), []
    for _ in range(count):
        a = weights[0]
        for w in weights[1:]:
            a = w @ (rng.choice(slopes, len(a))[:, None] * a)
        found.append(np.linalg.norm(a, 2))
    return max(found)


@pytest.mark.slow
@pytest.mark.parametrize("slopes", [(0.0, 2.0), (0.25, 1.0), (-2.0, 0.5)])
def test_stacks_are_bounded(slopes):
    rng = np.random.default_rng(4)
    for sizes in ((2, 5, 4, 3),):
        weights = [rng.normal(size=(m, n)) / math.sqrt(n) for n, m in zip(sizes, sizes[1:], strict=False)]
        found = norms.stack_norm(weights, slopes, steps=12)
        steepest = max(map(abs, slopes))
        plain = math.prod(np.linalg.norm(w, 2) for w in weights) * steepest ** (len(weights) - 1)
        assert slopes_of(weights, slopes) <= found <= plain * (1 + 1e-3)
        if slopes[0] >= 0:
            assert found < 0.99 * plain
    assert norms.stack_norm([np.diag([3.0, 1.0])], slopes) == pytest.approx(3, rel=1e-3)
    # Of what passes the activation alone it is exact: W₂ W₁ with W₁ the identity.
    same = norms.stack_norm([np.eye(2), np.diag([1.0, 0.5])], (0.0, 1.0), steps=12)
    assert 1 <= same <= 1 + 2e-3


def test_a_quadratic_form_that_is_not_positive_is_not_proved():
    # (c² - t/2) > 0 for x -> ψ(x), multiplier t: |Δz|² <= L² |Δx|² needs 2 t - 1 > 0 and c² > t² / (2 t - 1), least at t = 1.
    one = [np.eye(1), np.eye(1)]
    assert norms._proved(one, [np.array([1.0])], 1.0001)
    assert not norms._proved(one, [np.array([1.0])], 1.0)
    assert not norms._proved(one, [np.array([1.0])], 0.9999)
    assert not norms._proved(one, [np.array([0.5])], 5.0)
    assert norms._proved(one, [np.array([2.0])], math.sqrt(4 / 3) + 1e-6)
    assert not norms._proved(one, [np.array([2.0])], math.sqrt(4 / 3) - 1e-6)
    assert not norms._proved(one, [np.array([np.nan])], 2.0)
    # By hand for three layers: the form as a whole.
    rng = np.random.default_rng(5)
    w = [rng.normal(size=(2, 2)), rng.normal(size=(3, 2)), rng.normal(size=(1, 3))]
    t = [np.array([1.5, 0.7]), np.array([2.0, 1.0, 0.8])]
    form = np.zeros((7, 7))
    form[2:4, 2:4], form[4:, 4:] = 2 * np.diag(t[0]), 2 * np.diag(t[1]) - w[2].T @ w[2]
    form[2:4, :2], form[4:, 2:4] = -t[0][:, None] * w[0], -t[1][:, None] * w[1]
    form[:2, 2:4], form[2:4, 4:] = form[2:4, :2].T, form[4:, 2:4].T
    # Scaled until the lower part is positive, the least c is known from a Schur complement.
    scale = 1.0
    while np.linalg.eigvalsh(form[2:, 2:])[0] <= 0.05:
        w[1], w[2], scale = 0.7 * w[1], 0.7 * w[2], scale * 0.7
        form[4:, 4:] = 2 * np.diag(t[1]) - w[2].T @ w[2]
        form[4:, 2:4] = -t[1][:, None] * w[1]
        form[2:4, 4:] = form[4:, 2:4].T
    least = math.sqrt(np.linalg.eigvalsh(form[:2, 2:] @ np.linalg.solve(form[2:, 2:], form[2:, :2]))[-1])
    assert norms._proved(w, t, least * (1 + 1e-9))
    assert not norms._proved(w, t, least * (1 - 1e-9))
    value = norms._padded(np.ones((2, 2)), (3, 3))
    assert value.tolist() == [[0, 0, 0], [0, 1, 1], [0, 1, 1]]


@pytest.mark.slow
def test_lipschitz_constants_of_functions():
    box = bounds.Box(jnp.asarray([0.5, -1.0]), jnp.asarray([1.0, 1.0]))
    function = lambda s, x, c: jnp.stack([x[0] * x[1] * c, s + x[0]])
    # The Jacobian is [[c x1, c x0], [1, 0]].
    found = {n: float(bounds.lipschitz(function, 2.0, box, 3.0, argnum=1, norm=n)) for n in ("2", "inf", ("2", "inf"))}
    assert found["inf"] == pytest.approx(6, rel=1e-4)
    assert found["2", "inf"] == pytest.approx(math.sqrt(18), rel=1e-4)
    assert np.linalg.norm([[3.0, 3.0], [1.0, 0.0]], 2) <= found["2"] <= 6
    assert float(bounds.lipschitz(lambda x: jnp.floor(x), box)) == np.inf
    for wrong in ({"norm": "1"}, {"argnum": 0}, {"argnum": 3}, {"argnum": -1}, {"method": "exact"}):
        with pytest.raises(ValueError, match="expected"):
            bounds.lipschitz(function, 2.0, box, 3.0, **{"argnum": 1, **wrong})
    for wrong in ([], [np.ones(2)], [np.full((2, 2), np.nan)], [np.ones((2, 3)), np.ones((2, 3))]):
        with pytest.raises(ValueError, match="weights: expected"):
            norms.stack_norm(wrong)
    for wrong in ((1.0, 1.0), (1.0, 0.0), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="slopes: expected"):
            norms.stack_norm([np.eye(2)] * 2, wrong)
