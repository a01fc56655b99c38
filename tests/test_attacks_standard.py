"""The standard attacks against closed forms, the bounds they keep, and an attack of another library."""

import functools
import re
import warnings
from typing import Any

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lyapunov_dsl as ld
from lyapunov_dsl.attacks._climb import _checkpoints
from lyapunov_dsl.attacks._noise import _keep
from lyapunov_dsl.attacks._square import _hills, _window

pytestmark = pytest.mark.usefixtures("quick_module")

RNG = np.random.default_rng(0)
W = RNG.normal(size=(5, 12)).astype(np.float32)
X = RNG.uniform(0.2, 0.8, (60, 12)).astype(np.float32)
Y = np.argmax(X @ W.T, axis=1).astype(np.int32)
Y[:3] = (Y[:3] + 1) % 5  # wrong from the start
RADII = {"inf": 0.15, "2": 0.5}
ATTACKS = {
    "apgd_ce": functools.partial(ld.attacks.apgd_ce, steps=20),
    "apgd_t": functools.partial(ld.attacks.apgd_t, steps=15, targets=4),
    "fab": functools.partial(ld.attacks.fab, steps=10, targets=4),
    "square": functools.partial(ld.attacks.square, queries=60),
    "noise": functools.partial(ld.attacks.noise, queries=3),
}
# One size of batches, so that a function compiles once for each attack.
SIZE = 20
attack_names = pytest.mark.parametrize("name", ATTACKS)
norms = pytest.mark.parametrize("norm", ["inf", "2"])


def linear(x: Any) -> Any:
    return x @ jnp.asarray(W, x.dtype).T


def lengths(offset: Any, norm: str) -> Any:
    flat = np.asarray(offset, np.longdouble).reshape(len(offset), -1)
    return np.max(np.abs(flat), axis=1) if norm == "inf" else np.sqrt(np.sum(flat**2, axis=1))


def distances(norm: str) -> Any:
    """From each input to the nearest one that the linear model decides otherwise: the least of |margin| / ||w||_*."""
    weights = (W[Y][:, None] - W[None]).astype(np.float64)
    margins = np.einsum("bkn,bn->bk", weights, X)
    dual = np.abs(weights).sum(-1) if norm == "inf" else np.linalg.norm(weights, axis=-1)
    other = np.arange(5)[None] != Y[:, None]
    return np.maximum(np.min(np.where(other, margins / np.maximum(dual, 1e-30), np.inf), axis=1), 0)


def misled(function: Any, x: Any, y: Any) -> Any:
    logits = np.array(function(jnp.asarray(x)))
    own = logits[np.arange(len(y)), y]
    logits[np.arange(len(y)), y] = -np.inf
    return ~(own > logits.max(axis=1))


@norms
@pytest.mark.parametrize(("name", "short"), [("apgd_ce", 0), ("apgd_t", 0), ("fab", 0), ("square", 10), ("noise", 60)])
def test_the_exact_robust_error_of_a_linear_model(name: str, short: int, norm: str) -> None:
    """Gradient attacks reach it; the search without gradients may miss a few, and nothing goes beyond it."""
    exact, radius = distances(norm), RADII[norm]
    attack = functools.partial(ld.attacks.square, queries=200) if name == "square" else ATTACKS[name]
    # Cross entropy goes for all classes at once, which need not be the nearest boundary.
    slack = 0.02 * radius if name == "apgd_ce" else 1e-5
    out = attack(linear, X, Y, radius=radius, norm=norm, clip=None, key=jax.random.key(0), batch_size=SIZE)
    assert out.dtype == np.float32
    found = misled(linear, out, Y)
    assert not found[exact > radius * (1 + 1e-5)].any()
    assert (~found[exact < radius - slack]).sum() <= short
    assert 10 < (exact < radius).sum() < 50


@pytest.mark.parametrize(("name", "norm"), [("apgd_t", "2"), ("fab", "inf"), ("square", "2")])
def test_double_precision_and_no_promotion(name: str, norm: str, strict: Any) -> None:
    exact, radius = distances(norm), RADII[norm]
    with jax.enable_x64(True):
        x = X.astype(np.float64)
        out = ATTACKS[name](linear, x, Y, radius=radius, norm=norm, clip=None, key=jax.random.key(0), batch_size=SIZE)
        assert out.dtype == np.float64
        assert (lengths(np.asarray(out, np.longdouble) - x, norm) <= radius).all()
        found = misled(linear, out, Y)
        assert not found[exact > radius * (1 + 1e-5)].any()
        assert found[exact < radius - 1e-5].all() or name == "square"


@norms
@attack_names
def test_wrong_ones_are_left_alone_and_keys_decide(name: str, norm: str) -> None:
    attack = functools.partial(ATTACKS[name], linear, radius=RADII[norm], norm=norm, clip=None, batch_size=SIZE)
    some = X[:SIZE], Y[:SIZE]
    once, again, other = (np.asarray(attack(*some, key=jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once[:3], X[:3])
    np.testing.assert_array_equal(once, again)
    # Signs of gradients lead to the same corner from everywhere.
    assert name == "fab" or (name.startswith("apgd") and norm == "inf") or not np.array_equal(once, other)
    # An example has its own key: the batch it comes in does not matter.
    whole = attack(X, Y, key=jax.random.key(0))
    np.testing.assert_allclose(once, whole[:SIZE], atol=1e-5)


@st.composite
def problems(draw: Any) -> Any:
    """Inputs in a range of any kind, some of them at its ends."""
    low = draw(st.sampled_from([0.0, 0.1, -1.0, 1e-3]))
    high = low + draw(st.sampled_from([1.0, 0.3, 255.0]))
    seed = draw(st.integers(0, 99))
    share = np.random.default_rng(seed).uniform(-0.1, 1.1, (SIZE, 12)).astype(np.float32)
    x = np.clip(np.float32(low) + np.float32(high - low) * share, np.float32(low), np.float32(high))
    return x, draw(st.floats(1e-4, 1.0)) * (high - low), (low, high), seed


@norms
@pytest.mark.parametrize("name", [*ATTACKS, "pgd"])
@hypothesis.given(problem=problems())
@hypothesis.settings(max_examples=8)
def test_points_stay_in_the_ball_and_in_the_range_exactly(name: str, norm: str, problem: Any) -> None:
    """In float32, measured in exact arithmetic."""
    x, radius, clip, seed = problem
    few = {
        "apgd_ce": {"steps": 5},
        "apgd_t": {"steps": 5, "targets": 2},
        "fab": {"steps": 3, "targets": 2},
        "square": {"queries": 8},
        "noise": {"queries": 2},
    }
    function = getattr(ld.attacks, name)
    options: Any = few.get(name, {"steps": 4, "step_size": radius / 2})
    y = np.argmax(linear(x), axis=1).astype(np.int32)
    out = np.asarray(function(linear, x, y, radius=radius, norm=norm, clip=clip, key=jax.random.key(seed), **options))
    assert out.dtype == np.float32
    assert (lengths(out.astype(np.longdouble) - x, norm) <= radius).all()
    wide = out.astype(np.float64)
    assert (wide >= np.minimum(x, clip[0])).all()
    assert (wide <= np.maximum(x, clip[1])).all()


@norms
def test_inputs_outside_of_the_range_only_move_towards_it(norm: str) -> None:
    x = (4 * X - 2)[:SIZE]
    for name in ("apgd_ce", "square"):
        out = np.asarray(
            ATTACKS[name](linear, x, np.argmax(linear(x), axis=1), radius=0.1, norm=norm, key=jax.random.key(0))
        )
        assert (lengths(out.astype(np.longdouble) - x, norm) <= 0.1).all()
        assert (out[x < 0] >= x[x < 0]).all()
        assert (out[x > 1] <= x[x > 1]).all()


def test_checkpoints_are_those_of_the_paper() -> None:
    """p = 0, 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99, as section 3 lists them."""
    assert sorted(_checkpoints(100))[:8] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert max(_checkpoints(7)) == 7


def test_auto_pgd_finds_what_steps_of_one_size_do_not() -> None:
    """A small spot to be hit: steps of one size jump over it, halved ones do not."""
    spot = jnp.asarray([0.6, 0.6, 0.5, 0.5, 0.5, 0.5])
    away = lambda x: jnp.sqrt(jnp.sum((x - spot[None]) ** 2, axis=1) + 1e-12)
    function = lambda x: jnp.stack([away(x), jnp.full(len(x), 0.01)], axis=1)
    x, y = np.full((3, 6), 0.5, np.float32), np.zeros(3, np.int32)
    options: Any = {"radius": 0.25, "norm": "2", "key": jax.random.key(0)}
    assert not misled(function, ld.attacks.pgd(function, x, y, step_size=0.1, steps=100, **options), y).any()
    assert misled(function, ld.attacks.apgd_ce(function, x, y, steps=100, **options), y).all()


def test_logits_of_any_scale_do_not_stop_the_ratio() -> None:
    scaled = lambda x: 1e4 * linear(x)
    exact = distances("inf") < 0.15 * (1 - 1e-5)
    options: Any = {"radius": 0.15, "clip": None, "key": jax.random.key(0)}
    assert misled(scaled, ATTACKS["apgd_t"](scaled, X, Y, **options), Y)[exact].all()


@pytest.mark.parametrize("classes", [2, 3])
def test_the_ratio_with_few_classes(classes: int) -> None:
    few = lambda x: linear(x)[:, :classes]
    y = np.asarray(jnp.argmax(few(X), axis=1))
    out = ld.attacks.apgd_t(few, X, y, radius=0.3, key=jax.random.key(0), steps=10)
    assert misled(few, out, y).mean() > 0.9


def test_restarts_start_elsewhere() -> None:
    """A logit that only half of the ball leads to."""
    hole = lambda x: jnp.stack([1.0 - 0 * x[:, 0], jnp.where(x[:, 0] > 0.5, 2.0, 0.0) - 0.0 * x[:, 0]], axis=1)
    x, y = np.full((64, 2), 0.49, np.float32), np.zeros(64, np.int32)
    options: Any = {"radius": 0.02, "key": jax.random.key(0), "steps": 2}
    once = misled(hole, ld.attacks.apgd_ce(hole, x, y, **options), y).mean()
    often = misled(hole, ld.attacks.apgd_ce(hole, x, y, restarts=4, **options), y).mean()
    assert 0.1 < once < 0.5
    assert often > once + 0.2


@norms
def test_square_works_on_images_and_on_functions_of_numpy(norm: str) -> None:
    images = np.random.default_rng(1).uniform(0, 1, (6, 2, 8, 7)).astype(np.float32)
    weights = np.random.default_rng(2).normal(size=(112, 3)).astype(np.float32)
    plain = lambda x: np.asarray(x).reshape(len(x), -1) @ weights
    y = np.argmax(plain(images), axis=1)
    out = ld.attacks.square(
        plain, images, y, radius={"inf": 0.2, "2": 1.5}[norm], norm=norm, key=jax.random.key(0), queries=200
    )
    assert misled(plain, out, y).all()
    gray = ld.attacks.square(
        lambda x: x.reshape(len(x), -1)[:, :3], images[:, 0], y, radius=0.1, key=jax.random.key(0), queries=3
    )
    # The first points are vertical stripes at the edge of the ball.
    assert gray.shape == (6, 8, 7)


def test_hills_and_valleys() -> None:
    """η of eq. 2 of the Square paper: norm 1, antisymmetric, with its peak in the middle of each half."""
    i, j = jnp.arange(9)[:, None], jnp.arange(9)[None, :]
    hills = np.asarray(jax.jit(lambda: _hills(i, j, jnp.asarray(6), jnp.asarray(7), jnp.asarray(False), jnp.float32))())
    assert np.linalg.norm(hills) == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(hills[:3, :7], -hills[3:6, :7], atol=1e-6)
    assert np.unravel_index(np.argmax(hills), hills.shape) == (1, 3)
    assert (hills[6:] == 0).all()
    assert (hills[:, 7:] == 0).all()


def test_windows_shrink_as_in_the_paper() -> None:
    """Section 5: the share p is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10,000 queries."""
    marks = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    sides = lambda query, norm="inf", shape=(1, 3, 32, 32): [int(v) for v in _window(shape, 0.8, query / 10_000, norm)]
    for halvings, (first, last) in enumerate(zip([1, *(mark + 1 for mark in marks)], [*marks, 9999], strict=True)):
        side = max(round((0.8 * 32**2 / 2**halvings) ** 0.5), 1)
        assert sides(first) == sides(last) == [side, side]
    assert sides(1) == [29, 29]
    assert sides(9999) == [1, 1]
    # In the 2-norm hills and valleys need some room, and inputs that are no images have intervals.
    assert sides(9999, "2") == [3, 3]
    assert sides(100, shape=(1, 1000)) == [1, 200]
    assert sides(9999, shape=(1, 1000)) == [1, 2]
    # Squares no larger than the image.
    assert sides(1, shape=(1, 3, 4, 64)) == [4, 4]


def test_noise_keeps_the_smallest_margin_and_what_is_no_number() -> None:
    y, best, lowest = jnp.zeros(3, int), jnp.zeros((3, 1)), jnp.full(3, jnp.inf)
    for place, other in enumerate([[0.0, 0.4, 0.2], [0.6, jnp.nan, -1.0], [0.3, 0.0, 0.9]], start=1):
        logits = jnp.stack([jnp.full(3, 1.0), jnp.asarray(other)], axis=1)
        best, lowest = _keep(best, lowest, jnp.full((3, 1), float(place)), logits, y)
    # NaN misleads, and stays.
    np.testing.assert_array_equal(best[:, 0], [2, 2, 3])
    np.testing.assert_allclose(lowest, [0.4, -np.inf, 0.1], rtol=1e-5)


@pytest.mark.parametrize("name", [*ATTACKS, "pgd"])
def test_probabilities_of_few_digits(name: str, strict: Any) -> None:
    """bfloat16 has three digits: logits tie, gradients vanish, and nothing breaks."""
    function = lambda x: jax.nn.softmax(4 * linear(x)).astype(jnp.bfloat16)
    attack = ATTACKS.get(name, ld.attacks.pgd)
    out = attack(function, X[:SIZE], Y[:SIZE], radius=0.15, norm="2", key=jax.random.key(0), batch_size=SIZE)
    assert out.dtype == np.float32
    assert (lengths(np.asarray(out, np.longdouble) - X[:SIZE], "2") <= 0.15).all()
    assert misled(function, out, Y[:SIZE]).sum() >= 3


def test_parts_with_their_keys_give_the_answers_of_the_whole() -> None:
    """For processes that attack a share each."""
    keys = jax.random.split(jax.random.key(0), 2 * SIZE)
    for name, attack in {**ATTACKS, "pgd": ld.attacks.pgd}.items():
        part = functools.partial(attack, linear, radius=0.15, batch_size=SIZE)
        whole = np.asarray(part(X[: 2 * SIZE], Y[: 2 * SIZE], key=keys))
        half = part(X[SIZE : 2 * SIZE], Y[SIZE : 2 * SIZE], key=keys[SIZE:])
        np.testing.assert_allclose(whole[SIZE:], half, atol=1e-5, err_msg=name)
        with pytest.raises(ValueError, match=r"^key: expected one PRNG key, or 60 of them, got 40"):
            part(X, Y, key=keys)


def test_a_surrogate_gives_gradients_and_the_function_decides() -> None:
    """The function is NumPy's own, with a step that has no gradient; the surrogate is a linear model nearby."""
    rounded = lambda x: np.round(np.asarray(x) * 64) / 64 @ W.T
    options: Any = {"radius": 0.15, "key": jax.random.key(0), "surrogate": linear, "clip": None}
    y = np.argmax(rounded(X), axis=1)
    for name in ("apgd_t", "fab"):
        found = misled(rounded, ATTACKS[name](rounded, X, y, **options), y)
        assert found.mean() == pytest.approx(np.mean(distances("inf") < 0.15), abs=0.1)


def test_a_surrogate_that_is_misled_is_no_success() -> None:
    """It is wrong everywhere, with the gradient of the function's own margins."""
    some = np.flatnonzero((Y[-1] == Y) & (distances("inf") > 0))
    wrong = lambda x: linear(x) - 9 * jax.nn.one_hot(Y[-1], 5)[None]
    options: Any = {"radius": 0.15, "key": jax.random.key(0), "clip": None, "surrogate": wrong}
    found = misled(linear, ATTACKS["apgd_ce"](linear, X[some], Y[some], **options), Y[some])
    assert found[distances("inf")[some] < 0.14].all()
    assert 3 < found.sum() < len(some)


def test_nothing_compiles_anew_for_other_weights_and_the_last_batch(compilations: list[str]) -> None:
    class Model(eqx.Module):
        weights: Any

        def predict(self, x: Any) -> Any:
            return x @ self.weights.T

    run = lambda w: [
        attack(Model(jnp.asarray(w)).predict, X[:17], Y[:17], radius=0.05, key=jax.random.key(0), batch_size=8)
        for attack in (ATTACKS["apgd_t"], ATTACKS["square"])
    ]
    run(W)
    before = len(compilations)
    run(2 * W)
    assert len(compilations) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "1"}, "norm: expected 'inf' or '2', got '1'"),
        ({"radius": 0}, "radius: expected a positive number, got int 0"),
        ({"radius": float("nan")}, "radius: expected a positive number, got float nan"),
        ({"clip": (1, 0)}, r"clip: expected \(lowest, highest\) or None, got tuple \(1, 0\)"),
        ({"key": 0}, "key: expected a PRNG key"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got int 0"),
        ({"y": Y[:5]}, r"y: expected integer classes int\[60\], got int32\[5\]"),
        ({"y": Y + 1}, r"y: expected classes in \[0, 5\), got [0-9] to 5"),
        ({"x": np.where(X > 0.7, np.nan, X)}, "x: expected finite inputs, got"),
        (
            {"function": lambda x: x[:, 0]},
            r"function: expected logits float\[batch, classes\] for a batch of 60, got float32\[60\]",
        ),
    ],
)
def test_messages(changes: Any, message: str) -> None:
    options: Any = {"function": linear, "x": X, "y": Y, "radius": 0.1, "key": jax.random.key(0)} | changes
    for name in ATTACKS:
        with pytest.raises(ValueError, match=f"^{message}"):
            ATTACKS[name](
                options["function"],
                options["x"],
                options["y"],
                **{k: options[k] for k in options.keys() - {"function", "x", "y"}},
            )


FOLLOW = {"pgd": ld.attacks.pgd, **{name: ATTACKS[name] for name in ("apgd_ce", "apgd_t", "fab")}}


@pytest.mark.parametrize("name", FOLLOW)
def test_a_function_that_cannot_be_traced_needs_a_surrogate(name: str) -> None:
    """Before anything is attacked: here all inputs are wrong already."""
    plain, options = lambda x: np.asarray(x) @ W.T, {"radius": 0.1, "key": jax.random.key(0)}
    y = np.argmin(X @ W.T, axis=1)
    with pytest.raises(
        ValueError, match=r"^function: expected one that JAX can take gradients of, or a surrogate that is one"
    ):
        FOLLOW[name](plain, X, y, **options)
    with pytest.raises(
        ValueError, match=r"^surrogate: expected one that JAX can take gradients of, got one that JAX cannot"
    ):
        FOLLOW[name](linear, X, y, surrogate=plain, **options)


@pytest.mark.parametrize("name", FOLLOW)
@pytest.mark.parametrize("function", [linear, lambda x: np.asarray(x) @ W.T], ids=["JAX", "NumPy"])
def test_a_surrogate_with_other_classes_is_refused(name: str, function: Any) -> None:
    other = lambda x: linear(x)[:, :3]
    expected = (
        "predictions like those of function, float32[60,5]"
        if name == "pgd"
        else "as many logits as those of function, float[60,5]"
    )
    with pytest.raises(ValueError, match=f"^surrogate: expected {re.escape(expected)}, got float32\\[60,3\\]"):
        FOLLOW[name](function, X, np.argmin(X @ W.T, axis=1), surrogate=other, radius=0.1, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: expected a positive integer, got int 0"),
        ({"steps": True}, "steps: expected a positive integer, got bool True"),
        ({"step_size": float("inf")}, "step_size: expected a positive number, got float inf"),
        ({"step_size": 0}, "step_size: expected a positive number, got int 0"),
        ({"radius": float("inf")}, "radius: expected a positive number, got float inf"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got int 0"),
        ({"y": Y[:5]}, "y: expected targets with a leading batch axis of 60, got int32[5]"),
        ({"y": Y + 1}, "cross_entropy: expected integer targets in [0, 5), got 5 at example"),
        ({"y": X}, "cross_entropy: expected a target that is an integer class int[] or a one-hot vector float[5]"),
        ({"y": {"class": Y[:7]}, "loss": lambda p, t: -p[t["class"]]}, "y: expected targets with a leading batch axis of 60, got"),
        ({"y": X[:, :5], "loss": ld.squared_error}, None),
        ({"y": np.eye(5, dtype=np.float32)[Y]}, None),
        ({"y": {"class": Y}, "loss": lambda p, t: -p[t["class"]]}, None),
    ],
)  # fmt: skip
def test_what_pgd_is_given(changes: Any, message: str | None) -> None:
    options: Any = {"y": Y, "radius": 0.1, "steps": 1} | changes
    if message is None:
        assert ld.attacks.pgd(linear, X, **options).shape == X.shape
        return
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        ld.attacks.pgd(linear, X, **options)


def test_messages_of_counts() -> None:
    options: Any = {"radius": 0.1, "key": jax.random.key(0)}
    for attack, name in (("apgd_ce", "steps"), ("apgd_ce", "restarts"), ("apgd_t", "targets"), ("square", "queries")):
        with pytest.raises(ValueError, match=f"^{name}: expected a positive integer, got int 0"):
            getattr(ld.attacks, attack)(linear, X, Y, **options, **{name: 0})
    with pytest.raises(ValueError, match=r"^share: expected a number in \(0, 1\], got int 2"):
        ld.attacks.square(linear, X, Y, share=2, **options)


@pytest.fixture(scope="module")
def digits() -> Any:
    """A small network on scikit-learn's digits, as a JAX function, with the images it was not trained on."""
    datasets, networks = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.neural_network")
    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = networks.MLPClassifier((24,), max_iter=30, random_state=0).fit(x[:1200], y[:1200])
    (first, last), (one, two) = trained.coefs_, trained.intercepts_
    first, last, one, two = (jnp.asarray(v, jnp.float32) for v in (first, last, one, two))
    return lambda x: jax.nn.relu(x @ first + one[None]) @ last + two[None], x[1200:1400], y[1200:1400].astype(np.int32)


@norms
def test_foolbox_agrees(digits: Any, norm: str) -> None:
    """The same steps from x, so that both do the same; Auto-PGD is at least as strong within a point."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # foolbox imports names that SciPy has moved
        foolbox = pytest.importorskip("foolbox", exc_type=ImportError)
    function, x, y = digits
    radius = {"inf": 0.08, "2": 0.4}[norm]
    theirs = {"inf": foolbox.attacks.LinfBasicIterativeAttack, "2": foolbox.attacks.L2BasicIterativeAttack}[norm]
    attack = theirs(abs_stepsize=radius / 4, steps=10, random_start=False)
    _, _, success = attack(foolbox.JAXModel(function, bounds=(0, 1)), jnp.asarray(x), jnp.asarray(y), epsilons=[radius])
    reference = float(np.mean(np.asarray(success[0])))
    options: Any = {"radius": radius, "norm": norm}
    ours = misled(function, ld.attacks.pgd(function, x, y, step_size=radius / 4, steps=10, **options), y).mean()
    assert 0.1 < reference < 0.9
    assert ours == pytest.approx(reference, abs=0.01)
    for name in ("apgd_ce", "apgd_t", "fab"):
        out = ATTACKS[name](function, x, y, key=jax.random.key(0), **options)
        assert misled(function, out, y).mean() > reference - 0.01
