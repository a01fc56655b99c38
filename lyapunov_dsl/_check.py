"""Checks of a declaration by abstract evaluation: nothing is computed, everything is compared."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ._certificate import AllOf, Exponential, Point, each, loss_of, parts_of
from ._condition import Condition
from ._depends import check_depends
from ._domain import Box
from ._hints import as_one, doing
from ._potential import CrossEntropy, FunctionLoss, Loss, Truncated, radius_for
from ._rollout import discrete_path
from ._smoothness import smoothness
from ._system import DiscreteSystem, Start, System, identity
from ._types import Struct, check_arrays, describe, kind, struct_of


@dataclasses.dataclass(frozen=True, eq=False)
class Declaration:
    """What abstract evaluation found out about one example: shapes, dtypes, smoothness. Hashable, so that it can be
    static.

    **Arguments:**

    - `x`, `y`: one example.
    - `state`: what the input module returns for it.
    - `prediction`: what the readout returns.
    - `kinks`: what in the field and the readout is not smooth in time and state, by name.
    - `ties`: the paths of each array that stands at several places of the program, and is one parameter.
    """

    x: Struct
    y: Struct
    state: Struct
    prediction: Struct
    kinks: tuple[str, ...]
    ties: tuple[tuple[str, ...], ...] = ()

    def _identity(self) -> Any:
        leaves, tree = jax.tree.flatten((self.x, self.y, self.state, self.prediction))
        return tuple(leaves), tree, self.kinks, self.ties

    def __hash__(self) -> int:
        return hash(self._identity())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Declaration) and self._identity() == other._identity()


def check_example(example: Any) -> tuple[PyTree, PyTree]:
    """One unbatched pair (x, y) as shapes and dtypes; y is `None` without targets."""
    if not (isinstance(example, tuple | list) and len(example) == 2):
        raise ValueError(
            f"example: expected a pair (x, y) of one example without a batch axis (y=None without targets), got {example!r:.200}"
        )
    x, y = example
    try:
        return struct_of(x), struct_of(y)
    except TypeError as error:
        raise ValueError(f"example: expected arrays or jax.ShapeDtypeStruct, got {example!r:.200}") from error


def check_stateless(system: Any) -> None:
    """Refuses layers with mutable state, such as equinox's BatchNorm."""
    is_state = lambda node: isinstance(node, eqx.nn.StateIndex | eqx.nn.StatefulLayer)
    for leaf in jax.tree.leaves(system, is_leaf=is_state):
        if is_state(leaf) and (isinstance(leaf, eqx.nn.StateIndex) or leaf.is_stateful()):
            raise ValueError(
                f"system: expected layers without mutable state, got {type(leaf).__name__}. Fold a trained BatchNorm into the "
                "layer before it (scale and shift are constants in inference), or use GroupNorm or LayerNorm"
            )


def check_static(tree: Any, name: str) -> None:
    """Refuses arrays in static fields of modules: `jit` compares these, and arrays have no simple equality."""
    if isinstance(tree, eqx.Module):
        for field in dataclasses.fields(tree):
            value, where = getattr(tree, field.name, None), f"{name}.{field.name}"
            if not field.metadata.get("static", False):
                check_static(value, where)
            elif any(
                isinstance(leaf, jax.Array | np.ndarray) and not _is_hashable(leaf) for leaf in jax.tree.leaves(value)
            ):
                raise ValueError(
                    f"{name}: expected static fields without arrays, got one in {where}; make it an ordinary field, where "
                    "a NumPy array or a lyapunov_dsl.Constant is not trained, or a tuple of numbers"
                )
    elif isinstance(tree, tuple | list | dict):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            check_static(value, f"{name}[{key!r}]")


def check_start(system: Any, x: Struct) -> Start:
    """The shapes of the start, which has to be a `Start` with a floating-point state."""
    with doing(f"input(x: {describe(x)}), called with one example without a batch axis", system.input, "x"):
        start = eqx.filter_eval_shape(system.start, x)
    if not isinstance(start, Start):
        raise ValueError(f"input: expected a lyapunov_dsl.Start(state, context), got {describe(start):.200}")
    leaves = jax.tree_util.tree_leaves_with_path(start.state)
    if not any(np.prod(np.shape(leaf)) > 0 for _, leaf in leaves):
        raise ValueError(f"input: expected a state with at least one number, got an empty one, {describe(start.state)}")
    for path, leaf in leaves:
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise ValueError(
                f"input: expected a state of floating-point arrays, got {describe(leaf)} at state{jax.tree_util.keystr(path)}"
            )
    return start


def check_field(system: System, start: Start, *, exactly: bool = True) -> None:
    """The vector field returns something shaped like the state, and `exactly`: of its dtypes."""
    t = jax.ShapeDtypeStruct((), jnp.result_type(*jax.tree.leaves(start.state)))
    what = f"vector_field(t: {describe(t)}, state: {describe(start.state)}, context: {describe(start.context)})"
    with doing(what, system.vector_field, "t", "state", "context"):
        velocity = eqx.filter_eval_shape(system.velocity, t, start.state, start.context)
    shapes = lambda tree: struct_of(tree) if exactly else jax.tree.map(np.shape, struct_of(tree))
    if shapes(velocity) != shapes(start.state):
        raise ValueError(
            f"vector_field: expected an output like the state, {describe(start.state)}, got {describe(velocity)}"
        )


def check_layers(system: DiscreteSystem, start: Start) -> PyTree:
    """The state after the last step; every step has to return floating-point arrays."""
    state = start.state
    for i in range(len(system.steps)):
        what = f"steps[{i}](state: {describe(state)}, context: {describe(start.context)})"
        with doing(what, system.steps[i], "state", "context"):
            state = eqx.filter_eval_shape(system.step, i, state, start.context)
        leaves = jax.tree.leaves(state)
        if not leaves or not all(
            hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves
        ):
            raise ValueError(f"steps[{i}]: expected a state of floating-point arrays, got {describe(state)}")
    return state


def check_readout(system: Any, state: Struct) -> PyTree:
    """The prediction, which has to be floating-point."""
    with doing(f"readout(state: {describe(state)})", system.readout, "state"):
        prediction = eqx.filter_eval_shape(system.decode, state)
    for leaf in jax.tree.leaves(prediction):
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            raise ValueError(
                f"readout: expected floating-point outputs (logits, not decisions), got {describe(prediction)}"
            )
    return prediction


def check_potentials(
    condition: Condition, start: Start, prediction: Struct, target: Struct, *, trained: bool = True
) -> None:
    """Every loss fits the readout, every value and comparison is a scalar. Where nothing is `trained`, a function of prediction and
    target may do without the latter."""
    system = condition.system
    for name, part in parts_of(condition.certificate).items():
        loss = getattr(part, "loss", None)
        if isinstance(system, DiscreteSystem) and part.own_rate:
            raise ValueError(f"{name}: expected a continuous System, got a DiscreteSystem")
        if isinstance(loss, Loss):
            if target is None and loss.needs_target and (trained or not isinstance(loss, FunctionLoss)):
                raise ValueError(f"{name}: expected an example with a target for its loss, got y=None")
            loss.check(prediction, target)

        def evaluate(state: Any, context: Any, target: Any, part: Any = part) -> Any:
            begun = Start(state, context)
            readout = system.decode
            if isinstance(system, DiscreteSystem):
                states, readouts = discrete_path(system, begun, None)
                state, readout = states[0], readouts[0]
            t = jnp.zeros((), jnp.result_type(*jax.tree.leaves(state)))
            if isinstance(system, System):
                point = Condition(system, part).point(Start(state, context), target)
            else:
                point = Point(readout, context, target)
            value = part.value(t, state, point)
            comparison = part.comparison(t, value)
            if not part.own_rate or point.velocity is None:
                return value, comparison, comparison
            return value, comparison, part.derivative(t, state, point, point.velocity(t, state))[1]

        with doing(f"the value of {name} at a state {describe(start.state)}"):
            value, comparison, rate = eqx.filter_eval_shape(evaluate, start.state, start.context, target)
        for what, out in {"value": value, "comparison": comparison, "rate": rate}.items():
            if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
                raise ValueError(
                    f"{name}: expected its {what} for one example to be a float[] scalar, got {describe(out)}"
                )
        arrays, rest = eqx.partition((start.state, start.context, target), is_array_like)
        of_state = lambda s, more, evaluate=evaluate, rest=rest: evaluate(*eqx.combine((s, *more), rest))[0]
        check_depends(name, of_state, arrays[0], arrays[1:])


def derive_domain(system: System, certificate: Any, state: Struct) -> System:
    """The system with a domain: its own, or the cube of eq. 49 for cross entropy on the state itself."""
    if system.domain is not None:
        system.domain.check(state)
        return system
    loss = loss_of(certificate)
    inner = loss.loss if isinstance(loss, Truncated) else loss
    part = next((p for p in parts_of(certificate).values() if isinstance(p, Exponential)), None)
    one_vector = hasattr(state, "shape") and len(state.shape) == 1
    if isinstance(inner, CrossEntropy) and part is not None and system.readout is identity and one_vector:
        half_width = radius_for(inner, part.kappa, state.shape[0], horizon=system.horizon)
        return eqx.tree_at(lambda s: s.domain, system, Box(-half_width, half_width), is_leaf=lambda leaf: leaf is None)
    raise ValueError(
        "domain: expected a set H of states, such as System(..., domain=Box(-3, 3)); one is derived only for an exponential "
        f"certificate with cross entropy and readout=identity (eq. 49), got a state {describe(state)}"
    )


def check_batch(**data: tuple[Struct, PyTree]) -> None:
    """Raises `ValueError` unless every (declared example, data) is such examples with one leading batch axis, of equal
    length. Looks at shapes and types only, so that traced data will do."""
    for name, (declared, batch) in data.items():
        check_arrays(name, batch)
        shapes = [np.shape(leaf) for leaf in jax.tree.leaves(batch)]
        same = jax.tree.structure(batch) == jax.tree.structure(declared) and all(
            len(shape) > 0 and shape[1:] == one.shape
            for shape, one in zip(shapes, jax.tree.leaves(declared), strict=True)
        )
        # Images of 0 to 255 would be taken for pixels of another scale.
        if not same or not all(map(_alike, jax.tree.leaves(batch), jax.tree.leaves(declared))):
            raise ValueError(
                f"{name}: expected examples like the one given to compile, {describe(declared)}, with one leading batch "
                f"axis, got {describe(batch):.200}"
            )
    sizes = {np.shape(leaf)[0] for _, batch in data.values() for leaf in jax.tree.leaves(batch)}
    if len(sizes) > 1:
        raise ValueError(f"{', '.join(data)}: expected batch axes of equal length, got {sorted(sizes)}")


def check_data(declaration: Declaration, certificate: Any, x: PyTree, y: PyTree) -> int:
    """Checks concrete data with a leading batch axis against the declaration; returns the number of examples.

    **Raises:** `ValueError` for shapes that do not fit, different lengths, no examples, inputs that are not finite and
    targets out of range (JAX would clamp an index silently).
    """
    check_arrays("data", (x, y))
    sizes = {np.shape(leaf)[0] if np.ndim(leaf) else None for leaf in jax.tree.leaves((x, y))}
    size = sizes.pop() if len(sizes) == 1 else None
    if size is None:
        hint = "; numpy.asarray makes one array of a list" if isinstance(x, list) or isinstance(y, list) else ""
        raise ValueError(
            f"data: expected x and y with one leading batch axis of equal length, got {describe(struct_of((x, y))):.200}{hint}"
        )
    if size == 0:
        raise ValueError("data: expected at least one example, got an empty data set")
    for name, data, declared in (("x", x, declaration.x), ("y", y, declaration.y)):
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), struct_of(data))
        same = jax.tree.structure(one) == jax.tree.structure(declared) and all(
            a.shape == b.shape and _alike(a, b)
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(declared), strict=True)
        )
        if not same:
            raise ValueError(
                f"data: expected examples {name} like the one given to compile, {describe(declared)}, got {describe(one):.200}"
            )
    for leaf in jax.tree.leaves(x):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            # What is finite in float64 need not be so in float32, which the program sees.
            dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
            with np.errstate(over="ignore"):
                finite = np.isfinite(np.asarray(leaf).astype(dtype, copy=False)).reshape(size, -1).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"data: expected finite inputs, got NaN or Inf at example {np.flatnonzero(~finite)[0]}, as {dtype}"
                )
    for part in parts_of(certificate).values():
        loss = getattr(part, "loss", None)
        if isinstance(loss, Loss):
            loss.check_targets(declaration.prediction, y)
    return size


def _alike(a: Any, b: Any) -> bool:
    """Whether two arrays are of floating-point numbers both, of integers both, or of others both."""
    kinds = [[jnp.issubdtype(jnp.result_type(v), of) for of in (jnp.floating, jnp.integer)] for v in (a, b)]
    return kinds[0] == kinds[1]


def _is_hashable(x: Any) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def is_array_like(leaf: Any) -> bool:
    """Whether a leaf has a shape and a type."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def declare(system: Any, certificate: Any, example: Any) -> tuple[Any, Any, Declaration]:
    """Checks a whole declaration; returns the system with its domain, the certificate for this system, and what was found out.

    **Raises:** `ValueError` that says what was expected and what was got.
    """
    if not isinstance(system, System | DiscreteSystem):
        raise ValueError(f"system: expected a System or a DiscreteSystem, got {kind(system)}")
    parts_of(certificate)
    check_stateless(system)
    check_static(system, "system")
    check_static(certificate, "certificate")
    if isinstance(certificate, AllOf) and not certificate.parts:
        raise ValueError("certificate: expected at least one part, got none")
    x, y = check_example(example)
    quiet = eqx.nn.inference_mode(system)
    with as_one(x, y):
        start = check_start(quiet, x)
        if isinstance(quiet, System):
            check_field(quiet, start)
            final = start.state
        else:
            final = check_layers(quiet, start)
        prediction = check_readout(quiet, final)
        certificate = each(certificate, lambda part: part.prepared(quiet, start))
        check_potentials(Condition(quiet, certificate), start, prediction, y)
        if isinstance(system, System):
            system = derive_domain(system, certificate, start.state)
    kinks = smoothness(quiet, start, final)
    return system, certificate, Declaration(x, y, struct_of(start.state), struct_of(prediction), kinks)
