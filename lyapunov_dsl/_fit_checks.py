"""Checks of what `fit` is given, before anything is traced."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import optax
from jaxtyping import PyTree

from ._check import Declaration
from ._compile import Program
from ._trainable import trainable
from ._types import check_key, check_path, describe, is_count, is_finite, kind, struct_of

# Steps between two looks at what the device has computed.
LOOK = 64


def check_arguments(
    program: Any,
    optimizer: Any,
    epochs: Any,
    batch_size: Any,
    key: Any,
    validation: Any,
    select: Any,
    folder: Any,
    every: Any,
    augment: Any,
    chunk: Any,
) -> None:
    """Raises `ValueError` for arguments of `fit` other than the data that are not as they have to be."""
    if not isinstance(program, Program):
        raise ValueError(f"program: expected a Program made by lyapunov_dsl.compile, got {kind(program)}")
    check_key(key)
    for name, count in {"epochs": epochs, "batch_size": batch_size}.items():
        if not is_count(count):
            raise ValueError(f"{name}: expected a positive whole number, got {count!r}")
    if not isinstance(optimizer, optax.GradientTransformation):
        hint = "; call its gradient_transformation()" if hasattr(optimizer, "gradient_transformation") else ""
        raise ValueError(
            f"optimizer: expected an Optax GradientTransformation such as optax.adam(1e-3), got {kind(optimizer)}{hint}"
        )
    if augment is not None and not callable(augment):
        raise ValueError(f"augment: expected a function (x, key) -> x of one example, got {kind(augment)}")
    if chunk is not None and not (is_count(chunk) and LOOK % chunk == 0):
        raise ValueError(f"steps_per_dispatch: expected a whole number that divides {LOOK}, got {chunk!r}")
    if folder is not None:
        check_path("folder", folder)
    if select not in ("last", "best") or (select == "best" and validation is None):
        raise ValueError(f"select: expected 'last', or 'best' together with validation=(x, y), got {select!r}")
    if not (is_finite(every) and every >= 0):
        raise ValueError(f"checkpoint_every: expected a number of seconds >= 0, got {every!r}")


def before_augmentation(augment: Any, declaration: Declaration, x: PyTree) -> Declaration:
    """The declaration of examples as they are before they are augmented. Raises `ValueError` where they are not afterwards
    what the program takes."""
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), struct_of(x))
    after = struct_of(eqx.filter_eval_shape(augment, example, jax.random.key(0)))
    if after != declaration.x:
        raise ValueError(
            f"augment: expected what the program takes, {describe(declaration.x)}, got {describe(after)} from {describe(example)}"
        )
    return dataclasses.replace(declaration, x=example)


def check_pair(name: str, data: Any) -> tuple[PyTree, PyTree]:
    """Data as (x, y). Raises `ValueError` for what is no pair."""
    if not (isinstance(data, tuple | list) and len(data) == 2):
        raise ValueError(f"{name}: expected a pair (x, y) with a leading batch axis, got {kind(data)}")
    return data[0], data[1]


def check_mask(program: Program, mask: Any) -> PyTree:
    """The filter of what is trained, by default all that may be. Raises `ValueError` for a filter of another program."""
    allowed = trainable(program)
    if mask is None:
        return allowed
    leaves = jax.tree.leaves(mask)
    if jax.tree.structure(mask) != jax.tree.structure(allowed) or not all(isinstance(leaf, bool) for leaf in leaves):
        raise ValueError(
            "trainable: expected a filter of this program, made by lyapunov_dsl.trainable(program, freeze=lambda p: "
            f"p.system.input), got {kind(mask)}"
        )
    for (path, asked), may in zip(jax.tree_util.tree_leaves_with_path(mask), jax.tree.leaves(allowed), strict=True):
        if asked and not may:
            raise ValueError(
                f"trainable: expected True at floating-point JAX arrays of the system and the certificate alone, got it at "
                f"{jax.tree_util.keystr(path)}"
            )
    return mask
