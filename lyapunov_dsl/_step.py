"""A step of training: one, or several in one call of the device, and none any more after the first NaN."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ._mesh import split, whole
from ._objective._base import example_keys
from ._trainable import join_trainable


# Not inside `fit`: a second run with the same optimizer and another constant must find it compiled.
@eqx.filter_jit(donate="all-except-first")
def advance(fixed: Any, params: Any, moments: Any, bad: Any) -> Any:
    """One step: the new parameters and moments, the number of the first step that was not finite (or -1), the loss."""
    *_, indices, step = fixed
    params, moments, bad, loss = _step(fixed, params, moments, bad, indices[0], step)
    return params, moments, bad, loss[None]


@eqx.filter_jit(donate="all-except-first")
def advance_many(fixed: Any, params: Any, moments: Any, bad: Any) -> Any:
    """As many steps as there are rows of indices, in one loop on the device."""
    *_, indices, step = fixed
    arrays, rest = eqx.partition((params, moments, bad), eqx.is_array)

    def body(carry: Any, row: Any) -> Any:
        params, moments, bad = eqx.combine(carry, rest)
        params, moments, bad, loss = _step(fixed, params, moments, bad, *row)
        return eqx.filter((params, moments, bad), eqx.is_array), loss

    steps = step + jnp.arange(indices.shape[0], dtype=step.dtype)
    arrays, losses = jax.lax.scan(body, arrays, (indices, steps))
    return *eqx.combine(arrays, rest), losses


def _step(fixed: Any, params: Any, moments: Any, bad: Any, indices: Any, step: Any) -> Any:
    mesh, static, optimizer, augment, data, key, *_ = fixed
    x, y = split(mesh, jax.tree.map(lambda leaf: leaf[indices], data))
    key = jax.random.fold_in(key, step)
    if augment is not None:
        key, augment_key = jax.random.split(key)
        x = split(mesh, eqx.filter_vmap(augment)(x, example_keys(augment_key, x)))
    value = lambda p: join_trainable(p, static).loss(x, y, key=key)
    loss, grads = eqx.filter_value_and_grad(value)(params)
    given = {"value": loss, "grad": grads, "value_fn": value}
    updates, new_moments = optax.with_extra_args_support(optimizer).update(grads, moments, params, **given)
    proposed = (eqx.apply_updates(params, updates), new_moments)
    _check_kept(*(eqx.filter(pair, eqx.is_array) for pair in ((params, moments), proposed)))
    # The new parameters and moments too: a finite gradient can overflow in the optimizer. Some moments begin infinite.
    stays = lambda new, old: jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old)) if eqx.is_inexact_array(new) else True
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((loss, grads, proposed[0]))]
    good = (bad < 0) & jnp.all(jnp.stack(finite + jax.tree.leaves(jax.tree.map(stays, new_moments, moments))))
    # From the first bad step on nothing changes any more; which step that was is read only now and then. Not by `where`,
    # with which XLA on a CPU compiled four times as long (ResNet-18: 13 s and not 3), and ran as fast.
    new, rest = eqx.partition(proposed, eqx.is_array)
    old = eqx.filter((params, moments), eqx.is_array)
    kept = jax.lax.cond(good, lambda: new, lambda: old)
    params, moments = eqx.combine(kept, rest)
    return whole(mesh, (params, moments, jnp.where(good | (bad >= 0), bad, step), loss))


def _check_kept(old: PyTree, new: PyTree) -> None:
    """Raises `ValueError` where a step gives parameters or a state of another kind than it was given."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        raise ValueError("optimizer: expected a state that keeps its structure, got another one after a step")
    for before, after in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
        # By hand, since a state may hold keys.
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise ValueError(
                f"optimizer: expected parameters and a state that keep their shapes and dtypes, got {after.dtype}{list(after.shape)} "
                f"after a step where {before.dtype}{list(before.shape)} was"
            )
