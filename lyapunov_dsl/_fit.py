"""The training loop: Optax, one jitted and donated step, progress, and a stop at the first NaN."""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from tqdm import tqdm

from ._check import check_data
from ._compile import Program
from ._constant import trainable
from ._types import check_key, kind


class NonFiniteError(FloatingPointError):
    """Training met a NaN or an Inf. `result` holds the program as it was before that step."""

    def __init__(self, message: str, result: "FitResult"):
        super().__init__(message)
        self.result = result


class FitResult(eqx.Module):
    """What training returns.

    **Arguments:**

    - `program`: the trained program.
    - `history`: one dictionary an epoch: `epoch`, `step`, `loss` (mean over the epoch), `seconds` (training alone,
        the first epoch's compilation included), and `validation` where validation data was given.
    - `status`: `"done"`, or what stopped training.
    """

    program: Program
    history: list[dict[str, int | float]]
    status: str = eqx.field(static=True)


def fit(
    program: Program,
    data: Any,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    key: Any,
    validation: Any = None,
    batch_size: int = 64,
    progress: bool = True,
    throw: bool = True,
) -> FitResult:
    """Trains a program. The program that was given stays as it is.

    Every epoch visits the data once in a new order; a last batch that is not full is left for the next epoch. The key
    of a step depends on `key` and the number of the step alone.

    **Arguments:**

    - `program`: a [`lyapunov_dsl.Program`][].
    - `data`: a pair (x, y) with a leading batch axis, y `None` without targets.
    - `optimizer`: any Optax optimizer.
    - `epochs`, `batch_size`: positive whole numbers.
    - `key`: a PRNG key.
    - `validation`: another pair; its error ([`lyapunov_dsl.Program.error`][]) is shown and kept after every epoch.
    - `progress`: whether to show a progress bar.
    - `throw`: whether a NaN or Inf raises; otherwise the result says so in its status.

    **Returns:** a [`lyapunov_dsl.FitResult`][].

    **Raises:** `ValueError` for data that does not fit the declaration, targets out of range, or counts that are not
    positive; [`lyapunov_dsl.NonFiniteError`][] where the loss, a gradient or a parameter is NaN or Inf. It names the step and
    carries the last good program.
    """
    if not isinstance(program, Program):
        raise ValueError(f"program: expected a Program made by lyapunov_dsl.compile, got {kind(program)}")
    check_key(key)
    for name, count in {"epochs": epochs, "batch_size": batch_size}.items():
        if not (isinstance(count, int) and count > 0):
            raise ValueError(f"{name}: expected a positive whole number, got {count!r}")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError(
            f"optimizer: expected an Optax GradientTransformation such as optax.adam(1e-3), got {kind(optimizer)}"
        )
    x, y = _pair("data", data)
    size = check_data(program.declaration, program.certificate, x, y)
    if validation is not None:
        check_data(program.declaration, program.certificate, *_pair("validation", validation))
    batch_size = min(batch_size, size)
    data = jax.tree.map(jnp.asarray, (x, y))

    params, static = eqx.partition(program, trainable(program))
    if not jax.tree.leaves(params):
        raise ValueError("program: expected a system with trainable arrays (floating-point, not Constant), got none")
    # Copied, because the step donates them: the caller's program has to outlive training.
    params = jax.tree.map(jnp.copy, params)
    moments = optimizer.init(params)
    bad = jnp.full((), -1, jnp.int32)
    order_key, step_key = jax.random.split(key)

    @eqx.filter_jit(donate="all-except-first")
    def advance(fixed: Any, params: Any, moments: Any, bad: Any) -> Any:
        static, data, indices, step, key = fixed
        x, y = jax.tree.map(lambda leaf: leaf[indices], data)
        key = jax.random.fold_in(key, step)
        loss, grads = eqx.filter_value_and_grad(lambda p: eqx.combine(p, static).loss(x, y, key=key))(params)
        updates, new_moments = optimizer.update(grads, moments, params)
        proposed = (eqx.apply_updates(params, updates), new_moments)
        # The new parameters too: a finite gradient can overflow in the optimizer.
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in (loss, *jax.tree.leaves((grads, proposed[0])))]
        good = (bad < 0) & jnp.all(jnp.stack(finite))
        # From the first bad step on nothing changes any more; which step that was is read only now and then.
        params, moments = jax.tree.map(lambda new, old: jnp.where(good, new, old), proposed, (params, moments))
        return params, moments, jnp.where(good | (bad >= 0), bad, step), loss

    history: list[dict[str, int | float]] = []
    per_epoch = size // batch_size
    bar = tqdm(total=epochs * per_epoch, disable=not progress, unit="step", mininterval=0.5)
    step, status = 0, "done"
    for epoch in range(epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(order_key, epoch), size))
        began, losses = time.perf_counter(), []
        for batch in range(per_epoch):
            indices = jnp.asarray(order[batch * batch_size : (batch + 1) * batch_size])
            fixed = (static, optimizer, data, indices, jnp.asarray(step, jnp.int32), step_key)
            params, moments, bad, loss = _advance(fixed, params, moments, bad)
            losses.append(loss)
            step += 1
            bar.update()
            if step % 64 == 0 and int(bad) >= 0:
                break
        mean = float(jnp.mean(jnp.stack(losses)))
        record = {"epoch": epoch, "step": step, "loss": mean, "seconds": time.perf_counter() - began}
        if int(bad) >= 0:
            status = f"NaN or Inf at step {int(bad)}"
            break
        if validation is not None:
            record["validation"] = eqx.combine(params, static).error(*validation)
        history.append(record)
        shown = {k: f"{v:.4g}" for k, v in record.items() if k in ("loss", "validation")}
        bar.set_postfix(shown, refresh=False)
    bar.close()
    result = FitResult(eqx.combine(params, static), history, status)
    if status != "done" and throw:
        raise NonFiniteError(
            f"{status} (epoch {int(bad) // per_epoch}): the loss, a gradient or a parameter is not finite. The program as it was "
            "before that step is in .result; a smaller learning rate, gradient clipping (optax.clip_by_global_norm), a smaller "
            "kappa or, in end-to-end training, more solver steps (max_steps) usually help",
            result,
        )
    return result


# Not inside `fit`: a second run with the same optimizer and another constant must find it compiled.
@eqx.filter_jit(donate="all-except-first")
def _advance(fixed: Any, params: Any, moments: Any, bad: Any) -> Any:
    """One step: the new parameters and moments, the number of the first step that was not finite (or -1), the loss."""
    static, optimizer, data, indices, step, key = fixed
    x, y = jax.tree.map(lambda leaf: leaf[indices], data)
    key = jax.random.fold_in(key, step)
    loss, grads = eqx.filter_value_and_grad(lambda p: eqx.combine(p, static).loss(x, y, key=key))(params)
    updates, new_moments = optimizer.update(grads, moments, params)
    proposed = (eqx.apply_updates(params, updates), new_moments)
    # The new parameters too: a finite gradient can overflow in the optimizer.
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in (loss, *jax.tree.leaves((grads, proposed[0])))]
    good = (bad < 0) & jnp.all(jnp.stack(finite))
    # From the first bad step on nothing changes any more; which step that was is read only now and then.
    params, moments = jax.tree.map(lambda new, old: jnp.where(good, new, old), proposed, (params, moments))
    return params, moments, jnp.where(good | (bad >= 0), bad, step), loss


def _pair(name: str, data: Any) -> tuple[PyTree, PyTree]:
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise ValueError(f"{name}: expected a pair (x, y) with a leading batch axis, got {kind(data)}")
    return data[0], data[1]
