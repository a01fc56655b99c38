"""Losses as potentials: values, gradients, decisions, gradient profiles, and the radius of eq. 49."""

import math

import hypothesis
import hypothesis.extra.numpy as st_numpy
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld

CLASSES = 5
FEW = hypothesis.settings(max_examples=40)
SOME = hypothesis.settings(max_examples=100)

# Near and far logits, with ties likely.
LOGITS = st_numpy.arrays(
    np.float64, CLASSES, elements=st.one_of(st.sampled_from([0.0, 1.0, 40.0, -40.0, 100.0]), st.floats(-100, 100))
)
LABELS = st.integers(0, CLASSES - 1)
DISTRIBUTIONS = st_numpy.arrays(np.float64, CLASSES, elements=st.floats(0.01, 1)).map(lambda w: w / w.sum())

value = jax.jit(ld.cross_entropy)
gradient = jax.jit(jax.grad(ld.cross_entropy))
correct = jax.jit(ld.cross_entropy.correct)


@jax.jit
def truncated(logits, label, level):
    loss = ld.truncated(ld.cross_entropy, level)
    return *jax.value_and_grad(loss)(logits, label), loss.correct(logits, label)


def reference(logits, label):
    """log Σ exp(z_j - z_y), without cancellation, in 80 bits."""
    differences = np.asarray(logits, np.longdouble) - np.longdouble(logits[label])
    return np.log1p(np.sum(np.exp(np.delete(differences, label))))


def probabilities(logits):
    """Softmax and, for each class, the probability of all others, in 80 bits."""
    z = np.asarray(logits, np.longdouble)
    ratios = np.exp(z[None, :] - z[:, None])
    others = ratios.sum(axis=1, where=~np.eye(len(z), dtype=bool))
    return 1 / (1 + others), others / (1 + others)


@FEW
@hypothesis.given(LOGITS, LABELS)
def test_cross_entropy_keeps_its_relative_precision(precision, logits, label):
    logits = jnp.asarray(logits, precision)
    got = value(logits, jnp.asarray(label))
    assert got.dtype == precision
    info = jnp.finfo(precision)
    expected = reference(np.asarray(logits), label)
    # z_j - z_y is rounded once, and the exponential turns that into a relative error.
    rounding = float(info.eps) * (16 + float(jnp.max(jnp.abs(logits - logits[label]))))
    np.testing.assert_allclose(float(got), float(expected), rtol=rounding, atol=64 * float(info.tiny))


def test_the_value_near_the_target_does_not_cancel(precision):
    got = value(jnp.asarray([40.0, 0.0, 0.0], precision), jnp.asarray(0))
    np.testing.assert_allclose(float(got), 2 * math.exp(-40), rtol=64 * float(jnp.finfo(precision).eps))
    assert 8.4e-18 < float(got) < 8.6e-18


@FEW
@hypothesis.given(LOGITS, LABELS)
def test_the_gradient_is_softmax_minus_one_hot(precision, logits, label):
    logits = jnp.asarray(logits, precision)
    info = jnp.finfo(precision)
    p, rest = probabilities(np.asarray(logits))
    expected = np.where(np.arange(CLASSES) == label, -rest, p).astype(np.float64)
    # Each entry to its own relative precision: -(1 - p_y) does not cancel either.
    rounding = float(info.eps) * (32 + 2 * float(jnp.max(jnp.abs(logits[:, None] - logits[None, :]))))
    got = gradient(logits, jnp.asarray(label))
    np.testing.assert_allclose(got, expected, rtol=rounding, atol=64 * float(info.tiny))


@pytest.mark.parametrize("logits", [[0.0, 0, 0, 0], [3.0, 3, 0, 3], [-5e3, 5e3, 5e3, 0], [88.0, -88, 0, 0]])
def test_the_gradient_at_ties_and_extremes(precision, logits):
    p, rest = probabilities(np.asarray(logits))
    for label in range(4):
        expected = np.where(np.arange(4) == label, -rest, p).astype(np.float64)
        got = gradient(jnp.asarray(logits, precision), jnp.asarray(label))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-37)


@FEW
@hypothesis.given(LOGITS, LABELS)
def test_integer_and_one_hot_targets_agree(precision, logits, label):
    logits = jnp.asarray(logits, precision)
    one_hot = jax.nn.one_hot(label, CLASSES, dtype=precision)
    assert value(logits, jnp.asarray(label)) == value(logits, one_hot)
    np.testing.assert_array_equal(gradient(logits, jnp.asarray(label)), gradient(logits, one_hot))
    assert correct(logits, jnp.asarray(label)) == correct(logits, one_hot)


@FEW
@hypothesis.given(LOGITS, DISTRIBUTIONS)
def test_a_distribution_over_the_classes_is_a_target(logits, target):
    with jax.enable_x64(True):
        got, slope = value(jnp.asarray(logits), jnp.asarray(target)), gradient(jnp.asarray(logits), jnp.asarray(target))
    p, _ = probabilities(logits)
    expected = np.log(np.sum(np.exp(np.asarray(logits, np.longdouble)))) - np.sum(target * logits)
    np.testing.assert_allclose(float(got), float(expected), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(slope, (p - target).astype(np.float64), rtol=1e-10, atol=1e-12)


@FEW
@hypothesis.given(LOGITS, LABELS)
def test_ties_count_as_wrong(precision, logits, label):
    logits = np.asarray(logits, precision)
    expected = bool(np.all(logits[label] > np.delete(logits, label)))
    assert bool(correct(jnp.asarray(logits), jnp.asarray(label))) is expected
    tied = logits.copy()
    tied[(label + 1) % CLASSES] = tied[label]
    assert not bool(correct(jnp.asarray(tied), jnp.asarray(label)))


@SOME
@hypothesis.given(LOGITS, st.one_of(LABELS, DISTRIBUTIONS), st.floats(0, 0.5))
def test_a_loss_below_the_threshold_means_the_right_decision(logits, target, level):
    with jax.enable_x64(True):
        for loss in (ld.cross_entropy, ld.truncated(ld.cross_entropy, level)):
            threshold = loss.threshold()
            assert threshold is not None
            assert threshold == pytest.approx(math.log(2) - (0 if loss is ld.cross_entropy else level))
            scale = jnp.asarray([1.0, 0.1, 0.01])[:, None] * jnp.asarray(logits)
            for scaled in scale:
                decided = bool(loss(scaled, jnp.asarray(target)) < threshold * (1 - 1e-12))
                assert not decided or bool(loss.correct(scaled, jnp.asarray(target)))


def test_the_threshold_is_sharp():
    # Two classes at a tie have the loss log 2 exactly, and the decision is wrong.
    tie = jnp.asarray([1.0, 1.0, -1e3])
    assert float(ld.cross_entropy(tie, jnp.asarray(0))) == pytest.approx(ld.cross_entropy.threshold(), rel=1e-6)
    assert not bool(ld.cross_entropy.correct(tie, jnp.asarray(0)))


PROFILED = {
    "cross_entropy": (ld.cross_entropy, ["inf", "2"], st.one_of(LABELS, DISTRIBUTIONS)),
    "truncated": (ld.truncated(ld.cross_entropy, 0.05), ["inf", "2"], LABELS),
    "squared_error": (ld.squared_error, ["2"], DISTRIBUTIONS),
    "truncated squared_error": (ld.truncated(ld.squared_error, 0.5), ["2"], DISTRIBUTIONS),
}


@pytest.mark.parametrize("name", PROFILED)
def test_gradient_profiles_bound_the_gradients(name):
    loss, norms, targets = PROFILED[name]
    both = jax.jit(jax.value_and_grad(loss))

    @SOME
    @hypothesis.given(LOGITS, targets, st.sampled_from([1.0, 0.1, 0.02]))
    def check(logits, target, scale):
        with jax.enable_x64(True):
            level, slope = both(jnp.asarray(scale * logits), jnp.asarray(target))
        for norm in norms:
            dual = np.linalg.norm(slope, 1 if norm == "inf" else 2)
            assert dual <= loss.gradient_profile(float(level), norm)[0] * (1 + 1e-9) + 1e-12

    check()


@hypothesis.given(LOGITS, LABELS)
@FEW
def test_the_profile_of_cross_entropy_is_exact_in_the_inf_norm(logits, label):
    with jax.enable_x64(True):
        level = float(value(jnp.asarray(logits), jnp.asarray(label)))
        slope = gradient(jnp.asarray(logits), jnp.asarray(label))
    profile = ld.cross_entropy.gradient_profile(level, "inf")
    assert profile is not None
    np.testing.assert_allclose(np.abs(slope).sum(), profile[0], rtol=1e-10, atol=1e-300)


@pytest.mark.parametrize("name", PROFILED)
@hypothesis.given(st.floats(1e-3, 20), st.floats(1e-3, 20))
@FEW
def test_gradient_profiles_are_increasing_and_concave(name, a, b):
    loss, norms, _ = PROFILED[name]
    a, b = min(a, b), max(a, b)
    for norm in norms:
        profile = lambda v, norm=norm: loss.gradient_profile(v, norm)
        assert profile(a)[0] <= profile(b)[0]
        assert profile((a + b) / 2)[0] >= (profile(a)[0] + profile(b)[0]) / 2 * (1 - 1e-12)
        assert profile(b)[1] <= profile(a)[1]
        # The tangent at one level is above the profile at every other: what upper solutions rest on.
        assert profile(b)[0] <= (profile(a)[0] + profile(a)[1] * (b - a)) * (1 + 1e-12)
        h = 1e-5 * a
        slope = (profile(a + h)[0] - profile(a - h)[0]) / (2 * h)
        np.testing.assert_allclose(profile(a)[1], slope, rtol=1e-5, atol=1e-7)


def test_what_knows_no_profile_says_so():
    own = ld.Exponential(lambda p, y: jnp.sum((p - y) ** 4), 1).loss
    assert own.gradient_profile(1.0, "2") is None
    assert own.threshold() is None
    assert own.correct(jnp.zeros(2), jnp.zeros(2)) is None
    assert ld.squared_error.gradient_profile(1.0, "inf") is None
    assert ld.truncated(own, 0.1).gradient_profile(1.0, "2") is None
    assert ld.truncated(own, 0.1).threshold() is None


@FEW
@hypothesis.given(LOGITS, LABELS, st.floats(0, 50))
def test_truncation_subtracts_the_level_and_stops_at_zero(logits, label, level):
    with jax.enable_x64(True):
        logits, label = jnp.asarray(logits), jnp.asarray(label)
        plain, slope = float(value(logits, label)), np.asarray(gradient(logits, label))
        hypothesis.assume(abs(plain - level) > 1e-9)
        got, got_slope, decided = truncated(logits, label, level)
        assert bool(decided) == bool(correct(logits, label))
    np.testing.assert_allclose(got, max(0.0, plain - level), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(got_slope, slope * (plain > level), rtol=1e-12, atol=1e-300)


def test_squared_error_of_a_tree(precision):
    prediction = {"a": jnp.asarray([1.0, 2.0], precision), "b": jnp.asarray(3.0, precision)}
    target = {"a": jnp.asarray([0.0, 4.0], precision), "b": jnp.asarray(1.0, precision)}
    got = ld.squared_error(prediction, target)
    assert got.dtype == precision
    assert float(got) == 1 + 4 + 4
    assert float(ld.squared_error(jnp.ones((2, 3), precision), jnp.zeros((2, 3), precision))) == 6


@hypothesis.given(st.floats(0.1, 20), st.integers(4, 1000), st.floats(0.1, 3))
@SOME
def test_radius_for_solves_eq_49(kappa, classes, horizon):
    s = ld.radius_for(ld.cross_entropy, kappa, classes, horizon=horizon)
    corner = np.full(classes, -s)
    corner[0] = s
    np.testing.assert_allclose(float(reference(corner, 0)), math.exp(-kappa * horizon), rtol=1e-10)
    assert ld.radius_for(ld.truncated(ld.cross_entropy, 0.1), kappa, classes, horizon=horizon) == s


def test_radius_for_where_the_least_loss_underflows():
    assert ld.radius_for(ld.cross_entropy, 2000, 10) == pytest.approx(1000 + math.log(9) / 2, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 3])
def test_radius_for_refuses_too_few_classes(classes):
    with pytest.raises(ValueError, match="cannot be met there"):
        ld.radius_for(ld.cross_entropy, 2, classes)


@pytest.mark.parametrize("arguments", [(0, 10), (-1, 10), (math.nan, 10), (2, 1), (2, 0)])
def test_radius_for_refuses_what_makes_no_sense(arguments):
    with pytest.raises(ValueError, match=r"radius_for: expected"):
        ld.radius_for(ld.cross_entropy, *arguments)


def test_radius_for_speaks_of_cross_entropy_only():
    with pytest.raises(ValueError, match=r"radius_for: expected cross_entropy"):
        ld.radius_for(ld.squared_error, 2, 10)


STRUCT = jax.ShapeDtypeStruct((3,), jnp.float32)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        (STRUCT, jax.ShapeDtypeStruct((), jnp.float32)),
        (STRUCT, jax.ShapeDtypeStruct((4,), jnp.float32)),
        (STRUCT, jax.ShapeDtypeStruct((3,), jnp.int32)),
        (jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)),
        (jax.ShapeDtypeStruct((2, 3), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)),
        (jax.ShapeDtypeStruct((3,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)),
        ({"logits": STRUCT}, jax.ShapeDtypeStruct((), jnp.int32)),
    ],
)
def test_cross_entropy_refuses_shapes_that_do_not_fit(prediction, target):
    for loss in (ld.cross_entropy, ld.truncated(ld.cross_entropy, 0.1)):
        with pytest.raises(ValueError, match=r"cross_entropy: expected .* got"):
            loss.check(prediction, target)


def test_shapes_that_fit_are_accepted():
    ld.cross_entropy.check(STRUCT, jax.ShapeDtypeStruct((), jnp.int32))
    ld.cross_entropy.check(STRUCT, STRUCT)
    ld.squared_error.check({"a": STRUCT}, {"a": STRUCT})


def test_squared_error_refuses_another_shape():
    with pytest.raises(ValueError, match=r"squared_error: expected .* float32\[3\].* got"):
        ld.squared_error.check(STRUCT, jax.ShapeDtypeStruct((4,), jnp.float32))
    with pytest.raises(ValueError, match="squared_error: expected"):
        ld.squared_error.check({"a": STRUCT}, {"b": STRUCT})


@pytest.mark.parametrize(
    ("loss", "targets", "example"),
    [
        (ld.cross_entropy, np.array([0, 3]), 1),
        (ld.cross_entropy, np.array([-1, 2]), 0),
        (ld.truncated(ld.cross_entropy, 0.1), np.array([0, 1, 7]), 2),
        (ld.cross_entropy, np.array([[1.0, 0, 0], [1, 1, 0]]), 1),
        (ld.cross_entropy, np.array([[1.5, -0.5, 0]]), 0),
        (ld.cross_entropy, np.array([[np.nan, 0, 1]]), 0),
        (ld.squared_error, np.array([[0.0, 0, 0], [0, np.inf, 0]]), 1),
    ],
)
def test_targets_out_of_range_are_named(loss, targets, example):
    with pytest.raises(ValueError, match=f"at example {example}"):
        loss.check_targets(STRUCT, targets)


def test_targets_in_range_are_accepted():
    ld.cross_entropy.check_targets(STRUCT, np.array([0, 1, 2]))
    ld.cross_entropy.check_targets(STRUCT, np.eye(3))
    ld.squared_error.check_targets(STRUCT, np.eye(3))


def test_refusals():
    for level in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="truncated: expected"):
            ld.truncated(ld.cross_entropy, level)
    with pytest.raises(ValueError, match="loss: expected"):
        ld.Certificate.exponential("cross_entropy", 1)
