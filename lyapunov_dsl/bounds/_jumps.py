"""Functions whose derivative, as JAX takes it, need not bound how they change: they jump, or someone wrote the derivative."""

from typing import Any

import jax
import jax.numpy as jnp

# Functions of JAX with a derivative that it defines by hand, and defines rightly.
KNOWN = {"relu", "logaddexp"}
# Operations that jump, as the angle does across the negative axis, decide, or hide what depends on their operands.
STEPS = {
    *(
        "argmax",
        "argmin",
        "atan2",
        "bitcast_convert_type",
        "ceil",
        "eq",
        "floor",
        "ge",
        "gt",
        "is_finite",
        "le",
        "lt",
        "ne",
        "nextafter",
        "reduce_precision",
        "rem",
        "round",
        "select_n",
        "sign",
        "sort",
    ),
    *("stop_gradient", "top_k"),
}


def doubtful(closed: Any) -> str:
    """What about a traced function may make its derivative another than JAX takes; empty where nothing does.

    What JAX itself defines by hand for softplus, ReLU and log-sum-exp is taken on trust. Choices that happen to be continuous, such as a
    leaky ReLU by `jnp.where`, are not told from those that jump.
    """

    def look(jaxpr: Any) -> str:
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            inner = [v for v in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr) if _is_jaxpr(v)]
            if name.startswith("custom_"):
                if not _is_known(equation):
                    return "has a derivative that was written by hand and need not be its own"
                continue
            if (name in STEPS or _truncates(equation)) and not _in_logsumexp(equation):
                return f"uses {name}: what JAX takes for its derivative need not be one"
            for why in (look(getattr(v, "jaxpr", v)) for v in inner):
                if why:
                    return why
        return ""

    return look(closed.jaxpr)


def _is_known(equation: Any) -> bool:
    """Whether both a function and its derivative are JAX's, and ones that are known. Not, for one, JAX's sign with another derivative."""
    body, rule = equation.params.get("call_jaxpr"), equation.params.get("jvp_jaxpr_fun")
    source = lambda v: str(getattr(getattr(v, "debug_info", None), "func_src_info", ""))
    if body is None or rule is None:
        return False
    inner = getattr(body, "jaxpr", body)
    name = source(inner).split(" ")[0]
    plain = not any(e.primitive.name.startswith("custom_") for e in inner.eqns)
    return plain and name in KNOWN and _of_jax(source(inner)) and _of_jax(source(rule))


def _is_jaxpr(v: Any) -> bool:
    return hasattr(v, "eqns") or hasattr(v, "jaxpr")


def _truncates(equation: Any) -> bool:
    """Whether a number becomes an integer or a boolean."""
    kinds = [[jnp.issubdtype(v.aval.dtype, jnp.floating) for v in side] for side in (equation.invars, equation.outvars)]
    return equation.primitive.name == "convert_element_type" and kinds == [[True], [False]]


def _of_jax(source: str) -> bool:
    return "/jax/_src/" in source.replace("\\", "/")


def _in_logsumexp(equation: Any) -> bool:
    """Whether an equation is part of `jax.nn.logsumexp`, which chooses and stops gradients to the right end."""
    trace = getattr(equation.source_info, "traceback", None)
    frames = [] if trace is None else trace.frames
    return any(f.function_name == "logsumexp" and _of_jax(f.file_name) for f in frames)
