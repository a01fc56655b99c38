"""Systems that satisfy a certificate by construction: the least correction of a field, or of its input, that makes the condition hold."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ._certificate import Certificate, ControlBarrier, ControlLyapunov, each, parts_of
from ._condition import Condition
from ._control_affine import ControlAffine
from ._depends import check_depends
from ._system import Start, System
from ._types import kind, struct_of

# Of the quadratic program, relative.
TOLERANCE = 1e-3


class Enforced(eqx.Module):
    """A vector field with the least correction that makes certificates hold; see [`lyapunov_dsl.enforce`][].

    **Arguments:**

    - `system`: whose field is corrected.
    - `parts`: the certificates, by name.
    """

    system: System
    parts: dict[str, Certificate]

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        """The velocity at one time, state and context."""
        field: Any = self.system.vector_field
        flat, unravel = ravel_pytree(state)
        rows, most = self._conditions(t, flat, unravel, context)
        if isinstance(field, ControlAffine):
            columns = field.columns(t, state, context)
            u = field.input(t, state, context)
            drift = field.drifting(t, state, context)
            limits = None if field.least is None or field.largest is None else (field.least, field.largest)
            # Conditions on the velocity as conditions on the input.
            found = self._nearest(u, rows @ columns, most - rows @ drift, limits, rows, drift)
            return drift + columns @ found
        velocity, _ = ravel_pytree(self.system.velocity(t, state, context))
        return unravel(self._nearest(velocity, rows, most, None, rows, velocity))

    def _conditions(self, t: Any, flat: Any, unravel: Any, context: Any) -> tuple[Any, Any]:
        """Rows a and numbers b of the conditions a · velocity <= b: ∂V and comparison - ∂V/∂t."""
        point = Condition(self.system, next(iter(self.parts.values()))).point(Start(unravel(flat), context), None)
        rows, most = [], []
        for part in self.parts.values():
            value = lambda t, s, part=part: part.value(t, unravel(s), point)
            v, (of_time, slope) = jax.value_and_grad(value, (0, 1))(t, flat)
            rows.append(slope)
            most.append(part.comparison(t, v) - of_time)
        return jnp.stack(rows), jnp.stack(most)

    def _nearest(self, u: Any, rows: Any, most: Any, limits: Any, slopes: Any, velocity: Any) -> Any:
        """The nearest u' with rows · u' <= most inside of the limits."""
        unit = float(jnp.finfo(u.dtype).eps)
        # What the sums round, so that the condition holds as it is evaluated. At a state of rest it is 0.
        size = jnp.abs(slopes) @ jnp.abs(velocity) + jnp.abs(rows) @ jnp.abs(u)
        most = most - 4 * len(u) * unit * size
        ends = None if limits is None else [jnp.broadcast_to(v(u.dtype), u.shape) for v in limits]
        if ends is not None:
            low, high = ends
            best = rows @ (0.5 * low + 0.5 * high) - jnp.abs(rows) @ (0.5 * high - 0.5 * low)
            u = eqx.error_if(u, jnp.any(best > most), self._message("no input inside of the limits satisfies"))
        else:
            void = jnp.all(rows == 0, axis=1) & (most < 0)
            u = eqx.error_if(
                u, jnp.any(void), self._message("at a state where its value has no slope, nothing satisfies")
            )
        if len(rows) > 1:
            found, held = _program(u, rows, most, ends)
            return eqx.error_if(found, ~held, self._message("nothing satisfies all parts of"))
        if ends is None:
            return _half_space(u, rows[0], most[0])
        return _half_space_in_box(u, rows[0], most[0], *ends)

    def _message(self, what: str) -> str:
        return (
            f"enforce: {what} the certificate {' & '.join(self.parts)}; change the certificate, the field or the limits"
        )


def _half_space(u: Any, row: Any, most: Any) -> Any:
    """The nearest point of {row · u <= most}, by the closed form, without a division by a number that may be 0."""
    scale = jnp.max(jnp.abs(row))
    safe = jnp.where(scale > 0, scale, 1)
    unit = row / safe
    excess = jnp.maximum(row @ u - most, 0) / safe
    square = jnp.where(scale > 0, unit @ unit, 1)
    return u - jnp.where(scale > 0, excess / square, 0) * unit


def _half_space_in_box(u: Any, row: Any, most: Any, low: Any, high: Any) -> Any:
    """The nearest point of {row · u <= most} in a box: u - λ row clipped, with the least λ >= 0 that satisfies it. In λ the left side
    falls, and is linear between the values at which an entry meets its end."""
    scale = jnp.max(jnp.abs(row))
    row, most = row / jnp.where(scale > 0, scale, 1), most / jnp.where(scale > 0, scale, 1)
    moves = row != 0
    meets = jnp.where(moves, jnp.where(row > 0, u - low, u - high) / jnp.where(moves, row, 1), 0)
    ends = jnp.concatenate([jnp.zeros(1, u.dtype), jnp.sort(meets)])
    at = lambda by: jnp.sum(row * jnp.clip(u - by * row, low, high))
    values = jax.vmap(at)(ends)
    # The last end that is still above; from there the line to the next.
    above = jnp.sum(values > most) - 1
    first = jnp.clip(above, 0, len(ends) - 2)
    rise = values[first] - values[first + 1]
    part = jnp.where(rise > 0, (values[first] - most) / jnp.where(rise > 0, rise, 1), 0)
    by = jnp.where(above < 0, 0, ends[first] + jnp.clip(part, 0, 1) * (ends[first + 1] - ends[first]))
    return jnp.clip(u - by * row, low, high)


def _program(u: Any, rows: Any, most: Any, ends: Any) -> Any:
    """The nearest point of several half spaces and a box, by a quadratic program, and whether it is one up to a tolerance."""
    try:
        import qpax
    except ImportError as error:
        raise ImportError(
            "enforce: several certificates at once need a solver of quadratic programs; install lyapunov_dsl[control]"
        ) from error
    size = jnp.maximum(jnp.max(jnp.abs(rows), axis=1), float(jnp.finfo(u.dtype).tiny) ** 0.5)
    left, right = [rows / size[:, None]], [most / size]
    eye = jnp.eye(len(u), dtype=u.dtype)
    if ends is not None:
        low, high = ends
        left, right = [*left, eye, -eye], [*right, high, -low]
    none = jnp.zeros((0, len(u)), u.dtype)
    found = qpax.solve_qp_primal(eye, -u, none, none[:, 0], jnp.concatenate(left), jnp.concatenate(right))
    kept = jnp.all(rows @ u <= most)
    held = jnp.all(rows @ found - most <= TOLERANCE * (size + jnp.abs(most)))
    return jnp.where(kept, u, found), kept | held


def enforce(system: Any, certificate: Any, example: Any = None) -> System:
    """A system whose field satisfies a certificate everywhere, by the least correction of its velocity, or of the input of a
    [`lyapunov_dsl.ControlAffine`][].

    For one certificate f - ∂V max(0, ∂V·f + ∂V/∂t - comparison(t, V)) / |∂V|² (Manek and Kolter 2019), and the same of L_g V for
    inputs (Ames et al. 2016), the nearest inside of their limits; for several the nearest point of all half spaces, by a quadratic
    program (extra `[control]`), up to its tolerance. It is differentiable almost everywhere and can be trained through, the potential
    along with the field. Where the field satisfies the condition it is left as it is.

    **Arguments:**

    - `system`: a [`lyapunov_dsl.System`][].
    - `certificate`: of the state, without a target; or several, joined by `&`. On a `ControlAffine` also control Lyapunov and barrier
        functions.
    - `example`: x, one input without a batch axis; needed where the system has an input module, or no domain.

    **Returns:** the system with the corrected field. At a state where V has no slope and the condition fails, or no input inside of the
    limits satisfies it, evaluation raises an error that names the certificate (in compiled code as well).

    **Raises:** `ValueError` for a system or a certificate that cannot be enforced.
    """
    if not isinstance(system, System):
        raise ValueError(f"enforce: expected a System, got {kind(system)}")
    for name, part in parts_of(certificate).items():
        if part.own_rate and not isinstance(part, ControlLyapunov | ControlBarrier):
            raise ValueError(
                f"enforce: expected certificates about dV/dt, or control Lyapunov or barrier functions, got {name}"
            )
        loss = getattr(part, "loss", None)
        if loss is not None and loss.needs_target:
            raise ValueError(f"enforce: expected a certificate of the state alone, got {name}, whose loss has a target")
    if example is not None:
        start = eqx.filter_eval_shape(system.start, struct_of(example))
        certificate = each(certificate, lambda part: part.prepared(system, start))
        for name, part in parts_of(certificate).items():
            value = lambda s, c, t, part=part: part.value(t, s, Condition(system, part).point(Start(s, c), None))
            t = jax.ShapeDtypeStruct((), jnp.result_type(*jax.tree.leaves(start.state)))
            check_depends(name, value, start.state, start.context, t)
    return eqx.tree_at(lambda s: s.vector_field, system, Enforced(system, parts_of(certificate)))
