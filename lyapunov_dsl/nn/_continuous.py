"""The continuous-in-depth network: residual stages as ODE blocks."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PyTree

from .._system import DiscreteSystem
from .._types import check_sizes, is_finite
from ._blocks import (
    BasicBlock,
    Convolution,
    GroupNorm,
    Head,
    Stem,
    channels_first,
    channels_last,
    check_image,
    check_positive,
)


class ResidualField(eqx.Module):
    """f(t, η, context) = scale · norm(conv(relu(norm(conv(η))))) for a state (channels, H, W): the residual of a basic block
    as a vector field.

    It depends neither on the time nor on the context. The norms are GroupNorm, without mutable state; see
    [`lyapunov_dsl.nn.ResNet18`][]. No ReLU follows, so that the state can fall as well as rise. It serves as the field of a
    [`lyapunov_dsl.System`][] as well as in the steps of [`lyapunov_dsl.nn.continuous_net`][].

    **Arguments:**

    - `channels`: of the state.
    - `scale`: the factor > 0 in front. Where a unit of time is covered by n steps, n makes one Euler step an ordinary
        residual block.
    - `key`: a PRNG key.

    **Raises:** `ValueError` for channels that are no positive whole number or a scale that is not positive.
    """

    first: Convolution
    first_norm: GroupNorm
    second: Convolution
    second_norm: GroupNorm
    scale: float = eqx.field(static=True)

    def __init__(self, channels: Any, *, scale: Any = 1.0, key: Any):
        check_sizes(channels=channels)
        check_positive(scale=scale)
        k1, k2 = jax.random.split(key)
        self.first, self.second = Convolution(channels, channels, 3, key=k1), Convolution(channels, channels, 3, key=k2)
        self.first_norm, self.second_norm = GroupNorm(channels), GroupNorm(channels)
        self.scale = float(scale)

    def __call__(self, t: Any, state: Float[Array, "c h w"], context: Any = None) -> Float[Array, "c h w"]:
        """The velocity at one state."""
        hidden = jax.nn.relu(self.first_norm(self.first(channels_last(state))))
        return self.scale * channels_first(self.second_norm(self.second(hidden)))


class RungeKuttaStep(eqx.Module):
    """One step of the classical fourth-order Runge-Kutta method as a step of a [`lyapunov_dsl.DiscreteSystem`][].

    η + Δt/6 (k1 + 2 k2 + 2 k3 + k4), the four evaluations written out: a convolution in an XLA loop, which is where
    diffrax puts them, is many times slower on a CPU. The state is any PyTree.

    **Arguments:**

    - `field`: a field (t, state, context) -> d state/dt.
    - `begin`: the time at which the step begins.
    - `dt`: Δt > 0.

    **Raises:** `ValueError` for a field that is not callable, a time that is not finite, or a Δt that is not positive.
    """

    field: Callable
    begin: float = eqx.field(static=True)
    dt: float = eqx.field(static=True)

    def __init__(self, field: Any, begin: Any, dt: Any):
        if not callable(field):
            raise ValueError(f"field: expected a callable (t, state, context) -> d state/dt, got {field!r}")
        if not is_finite(begin):
            raise ValueError(f"begin: expected a finite time, got {begin!r}")
        check_positive(dt=dt)
        self.field, self.begin, self.dt = field, float(begin), float(dt)

    def __call__(self, state: PyTree, context: Any = None) -> PyTree:
        """The state at the end of the step."""

        def moved(dt: float, slope: PyTree) -> PyTree:
            return jax.tree.map(lambda x, k: x + dt * k, state, slope)

        middle, dt = self.begin + self.dt / 2, self.dt
        k1 = self.field(self.begin, state, context)
        k2 = self.field(middle, moved(dt / 2, k1), context)
        k3 = self.field(middle, moved(dt / 2, k2), context)
        k4 = self.field(self.begin + dt, moved(dt, k3), context)
        return moved(dt / 6, jax.tree.map(lambda a, b, c, d: a + 2 * (b + c) + d, k1, k2, k3, k4))


def continuous_net(
    shape: Any, classes: Any, *, width: Any = 16, stages: Any = 3, steps: Any = 3, scale: Any = 3.0, key: Any
) -> DiscreteSystem:
    """A continuous-in-depth network (Queiruga et al., 2020): residual stages as ODE blocks, as a discrete system.

    A 3x3 convolution with GroupNorm and ReLU; in every stage dη/dt = scale · r(η, θ(t)) over one unit of time, with r as in
    [`lyapunov_dsl.nn.ResidualField`][]; between two stages a residual block with stride 2 that doubles the channels; then the
    mean over all pixels and a dense layer. The weights θ(t) are piecewise constant with `steps` pieces in a stage, and
    every piece is one step of the classical Runge-Kutta method, so that no step crosses a jump. The
    defaults are the sizes of the network in the paper: 16, 32 and 64 channels, three steps a stage.

    Every Runge-Kutta step is a step of the system, so that the path integral sees the state after each. What changes
    the shape takes no time, and the potential of a state goes through the changes still to come and the readout. The
    horizon is the number of stages: κ is a rate per stage, and a step may keep exp(-κ / steps) of V.

    **Arguments:**

    - `shape`: (channels, height, width) of an image, all at least 1.
    - `classes`: how many.
    - `width`: channels of the first stage, doubled from stage to stage.
    - `stages`: how many ODE blocks.
    - `steps`: Runge-Kutta steps, and pieces of the weights, in a stage.
    - `scale`: the factor > 0 in front of the residual; the default makes one Euler step of three a residual block.
    - `key`: a PRNG key.

    **Returns:** a [`lyapunov_dsl.DiscreteSystem`][] from images to logits.

    **Raises:** `ValueError` for a shape that is not three positive whole numbers, other sizes that are none, or a scale that is
    not positive.
    """
    check_sizes(classes=classes, width=width, stages=stages, steps=steps)
    channels, *_ = check_image(shape)
    stem_key, head_key, stage_key = jax.random.split(key, 3)
    chain: list[Callable] = []
    for stage in range(stages):
        wide, keys = width * 2**stage, jax.random.split(jax.random.fold_in(stage_key, stage), steps + 1)
        if stage > 0:
            chain.append(BasicBlock(wide // 2, wide, 2, key=keys[-1]))
        for i in range(steps):
            field = ResidualField(wide, scale=scale, key=keys[i])
            chain.append(RungeKuttaStep(field, stage + i / steps, 1 / steps))
    head = Head(width * 2 ** (stages - 1), classes, key=head_key)
    return DiscreteSystem(Stem(channels, width, key=stem_key), chain, head, horizon=stages)
