"""A step of training: one, or several in one call of the device, and none any more after the first NaN."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ._mesh import split, whole
from ._objective._base import example_keys
from ._trainable import join_trainable
from ._update import Update, read_update

# How many kinds of optimizers have their steps kept.
KINDS = 16
_rules: dict[Any, Any] = {}


def update_of(optimizer: Any, static: Any, augment: Any, params: Any, moments: Any, batch: Any, key: Any) -> Update:
    """What `advance` takes for an optimizer.

    Where an equal one was seen before, the rule is the same object, so that they are not compared at every step. Steps are
    compiled once a rule; after so many that are different, those of all are forgotten.
    """

    def loss() -> Any:
        x, y = batch()
        value = lambda p, x, key: join_trainable(p, static).loss(x, y, key=key)
        return eqx.filter_eval_shape(lambda p, x, key: value(p, *_augmented(augment, x, key)), params, x, key)

    update = read_update(optimizer, params, moments, loss)
    if update.rule not in _rules and len(_rules) >= KINDS:
        _rules.clear()
        steps: tuple[Any, ...] = (advance, advance_many)
        for step in steps:
            step._cached.clear_cache()  # of JAX, since Equinox does not show it
    return Update(update.numbers, update.arrays, _rules.setdefault(update.rule, update.rule))


# Not inside `fit`: a second run with an optimizer or a constant of other numbers must find it compiled.
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
    mesh, static, update, augment, data, key, *_ = fixed
    x, y = split(mesh, jax.tree.map(lambda leaf: leaf[indices], data))
    x, key = _augmented(augment, x, jax.random.fold_in(key, step))
    x = split(mesh, x)
    value = lambda p: join_trainable(p, static).loss(x, y, key=key)
    loss, grads = eqx.filter_value_and_grad(value)(params)
    updates, new_moments = update(grads, moments, params, loss, value)
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


def _augmented(augment: Any, x: Any, key: Any) -> tuple[Any, Any]:
    """A batch as the program takes it, and the key for the rest."""
    if augment is None:
        return x, key
    key, augment_key = jax.random.split(key)
    return eqx.filter_vmap(augment)(x, example_keys(augment_key, x)), key


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
