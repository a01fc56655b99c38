"""The standard set of attacks, and what to believe of it."""

import functools
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._mesh import Team
from .._types import describe, shown
from . import _diagnose as diagnose
from ._apgd import apgd_ce, apgd_t
from ._ball import check_counts
from ._fab import fab
from ._noise import noise
from ._pgd import pgd
from ._report import AttackReport
from ._search import checked, count_classes, fold, judge
from ._square import square


def standard_attacks(*, steps: int = 100, targets: int = 9, queries: int = 5000) -> dict[str, Callable]:
    """The attacks that `evaluate` runs, by name: the paper's PGD, and the four kinds of AutoAttack's standard version
    (Croce & Hein 2020), with as many steps, target classes and queries there.

    **Arguments:**

    - `steps`, `targets`: of Auto-PGD and FAB.
    - `queries`: of the Square attack.

    **Returns:** a new dictionary of functions `attack(function, x, y, *, radius, norm, key, clip, batch_size)`, to which
    others may be added; those that follow a gradient take a `surrogate` as well.
    """
    return {
        "pgd": pgd,
        "apgd_ce": functools.partial(apgd_ce, steps=steps),
        "apgd_t": functools.partial(apgd_t, steps=steps, targets=targets),
        "fab": functools.partial(fab, steps=steps, targets=targets),
        "square": functools.partial(square, queries=queries),
    }


def evaluate(
    function: Callable,
    x: Float[Array, "batch ..."] | Float[np.ndarray, "batch ..."],
    y: Any,
    *,
    radius: Any,
    norm: str = "inf",
    key: Any,
    attacks: Mapping[str, Any] | None = None,
    black_box: Collection[str] | None = None,
    surrogate: Callable | None = None,
    early: Callable | None = None,
    transfer: Callable | None = None,
    steps: int = 100,
    clip: tuple[Any, Any] | None = (0.0, 1.0),
    batch_size: int = 100,
    tolerance: float = 0.01,
    mesh: Any = None,
) -> AttackReport:
    """Attacks a classifier in every way at hand, and says what makes the answer less than it seems.

    An example counts as misled where the function decides for another class, ties and NaN included; it is judged by
    `function` as it is, called once more on what each attack returned. The attack `noise` is added as a baseline.

    **Arguments:**

    - `function`: from a batch of inputs to logits float[batch, classes], such as `program.predict`. It need be neither
        differentiable nor a JAX function where `surrogate` is given.
    - `x`: inputs in the unit of `radius` and `clip`: pixels, with the normalization inside the function.
    - `y`: classes, int[batch].
    - `radius`, `norm`, `clip`: the balls, as for [`lyapunov_dsl.attacks.apgd_ce`][].
    - `key`: a PRNG key, or one for each input.
    - `attacks`: by name, `standard_attacks(steps=steps)` by default.
    - `black_box`: the names of those that take no gradient (and no `surrogate`), `square` by default.
    - `surrogate`: what gradients are taken of in place of `function`, such as the model with a solver of fixed steps.
    - `early`: the model at an early time, `lambda x: program.predict(x, stop=0.01)`: APGD on cross entropy follows its
        gradient, which is there still where that of the whole solution has vanished.
    - `transfer`: another model, of which APGD on cross entropy follows the gradient.
    - `steps`: of these two.
    - `batch_size`: how many inputs are attacked together.
    - `tolerance`: the share of the inputs from which on a warning is given for gradients that are zero or have vanished,
        and for what only attacks without the gradient found.
    - `mesh`: devices that all attacks are given, as for [`lyapunov_dsl.attacks.apgd_ce`][]; attacks of one's own then take a
        `mesh`, too. The rest is done on the default device, in every process.

    **Returns:** an [`lyapunov_dsl.attacks.AttackReport`][].

    **Raises:** `ValueError` as [`lyapunov_dsl.attacks.apgd_ce`][] does, for attacks that are no functions by name, for a
    name in `black_box` that is no attack's, for a `surrogate`, `early` or `transfer` that JAX cannot trace or that gives
    other classes, all before the first attack; and for an attack that returns points outside of the ball or the range.
    """
    attacks = standard_attacks(steps=steps) if attacks is None else attacks
    if not attacks or not all(callable(attack) for attack in attacks.values()):
        raise ValueError(f"attacks: expected functions by name, got {shown(attacks)}")
    reserved = {"noise", "early", "transfer"} & set(attacks)
    if reserved:
        raise ValueError(f"attacks: expected other names than noise, early and transfer, got {sorted(reserved)}")
    if black_box is None:
        black_box = {"square"} & set(attacks)
    unknown = set(black_box) - set(attacks)
    if unknown:
        raise ValueError(f"black_box: expected names of attacks, {list(attacks)}, got {sorted(unknown)}")
    check_counts(steps=steps, batch_size=batch_size)
    Team(mesh).check_batch(batch_size)
    x, y, radius, size = checked(function, x, y, radius, norm, clip, key, batch_size)
    logits, again = diagnose.outputs(function, x, size), diagnose.outputs(function, x, size)
    nominal = judge(function, x, y, size)
    given = {"surrogate": surrogate, "early": early, "transfer": transfer}
    _check_others({name: other for name, other in given.items() if other is not None}, x, logits.shape[1])
    if surrogate is None:
        count_classes(function, x)

    direct = [name for name in attacks if name not in black_box]
    through = {name: surrogate for name in direct if surrogate is not None}
    runs: dict[str, Callable] = {"noise": noise, **attacks}
    for name, other in (("transfer", transfer), ("early", early)):
        if other is not None:
            runs[name], through[name] = functools.partial(apgd_ce, steps=steps), other
    misled, seconds, examples = {}, {}, x.copy()
    options: Any = {"radius": radius, "norm": norm, "clip": clip, "batch_size": size}
    if mesh is not None:
        options |= {"batch_size": batch_size, "mesh": mesh}
    for index, (name, attack) in enumerate(runs.items()):
        began = time.perf_counter()
        more = {"surrogate": through[name]} if name in through else {}
        points = np.asarray(attack(function, x, y, key=fold(key, index), **options, **more))
        _check_points(name, points, x, radius, norm, clip)
        found = judge(function, points, y, size)
        new = found & ~nominal & ~np.any([np.zeros_like(nominal), *misled.values()], axis=0)
        examples[new] = points[new]
        misled[name], seconds[name] = found | nominal, time.perf_counter() - began

    zero, broken = diagnose.gradients(surrogate or function, x, y, radius, norm, size)
    own = None
    if surrogate is not None and _is_traceable(function, x):
        own, _ = diagnose.gradients(function, x, y, radius, norm, size)
    clamped = None
    if clip is not None and ((x < clip[0]) | (x > clip[1])).any():
        clamped = float(judge(function, np.clip(x, *clip), y, size).mean())
    pair = (None, None) if surrogate is None else diagnose.compare(diagnose.outputs(surrogate, x, size), logits)
    warnings = [
        *diagnose.short_steps(attacks, radius),
        *diagnose.about_gradients(zero, broken, tolerance),
        *diagnose.about_outputs(logits, again),
        *diagnose.about_range(x, clip, clamped),
        *diagnose.about_surrogate(*pair),
        *diagnose.about_masking(misled, direct, surrogate is not None, tolerance),
    ]
    return AttackReport(
        radius, norm, nominal, misled, examples, zero, broken, own, clamped, diagnose.spread(logits, again), *pair,
        seconds, tuple(warnings),
    )  # fmt: skip


def _check_others(others: Mapping[str, Callable], x: np.ndarray, classes: int) -> None:
    """Raises `ValueError` for what gradients cannot be taken of."""
    for name, other in others.items():
        try:
            out = jax.eval_shape(other, jnp.asarray(x[:1]))
        except jax.errors.JAXTypeError:
            raise ValueError(
                f"{name}: expected a function that JAX can take gradients of, got one it cannot trace"
            ) from None
        if getattr(out, "shape", None) != (1, classes):
            raise ValueError(f"{name}: expected logits float[1, {classes}] for a batch of 1, got {describe(out)}")


def _is_traceable(function: Callable, x: np.ndarray) -> bool:
    try:
        jax.eval_shape(function, jnp.asarray(x[:1]))
    except jax.errors.JAXTypeError:
        return False
    return True


def _check_points(name: str, points: np.ndarray, x: np.ndarray, radius: float, norm: str, clip: Any) -> None:
    if points.shape != x.shape:
        raise ValueError(f"attacks: expected {name} to return points of shape {x.shape}, got {points.shape}")
    offset = (points.astype(np.float64) - x).reshape(len(x), -1)
    far = float(np.max(np.abs(offset) if norm == "inf" else np.linalg.norm(offset, axis=1)))
    if not far <= radius * (1 + 1e-4):
        raise ValueError(
            f"attacks: expected {name} to stay within {radius:.6g} of the inputs, got a point at {far:.6g}"
        )
    slack = 1e-5
    low, high = (-np.inf, np.inf) if clip is None else (np.minimum(x, clip[0]) - slack, np.maximum(x, clip[1]) + slack)
    if (points < low).any() or (points > high).any():
        raise ValueError(
            f"attacks: expected {name} to stay in clip={clip}, got {points.min():.6g} to {points.max():.6g}"
        )
