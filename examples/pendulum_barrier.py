"""A pendulum that stays upright: a neural controller with a torque limit, and a set of states that it provably never leaves.

    python examples/pendulum_barrier.py --out out

θ'' = sin θ - 0.3 θ' + u, |u| <= 0.95 of gravity's greatest torque; safe are |θ| <= 1.2 and |θ'| <= 1.5. A controller and a barrier
function h are learned together without a solver: {h >= 0} is to be as large as it can be, inside of what is safe, and invariant. Beside
it the largest region that the same engine proves for 25 clipped linear quadratic regulators, each with two quadratic V. Writes
`results.json`, `pendulum_barrier.png` and the proof for `python -m lyapunov_checker`.
"""

import concurrent.futures
import multiprocessing
from typing import Any

import _control as control
import _pendulum as pendulum
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import lyapunov_dsl as ld

SAFE = np.array([1.2, 1.5])
PLANT = pendulum.plant(SAFE)
DOMAIN = PLANT.domain
# h may fall as fast as ALPHA h.
ALPHA = 1.0
PROVER = ld.Prover(boxes=200_000)
CLAIMS = ("decrease", "enclosed")


class Inside(eqx.Module):
    """h = 1 - V, so that {h >= 0} is a compact set around the origin."""

    potential: Any

    def __call__(self, s):
        return 1 - self.potential(s)


def networks(key):
    """A controller and an h."""
    one, two = jax.random.split(key)
    potential = ld.nn.PositivePotential(control.Scaled(control.network(2, 8, 32, 2, two), SAFE / 3), 2, margin=0.1)
    return control.Policy(SAFE / 3, pendulum.LIMIT, 16, 2, one), Inside(potential)


def learned(program) -> Any:
    """The h of a program."""
    return program.certificate.h


def learn(options):
    """A program whose barrier is proved, or what is left of it."""
    policy, h = networks(jax.random.key(options.seed))
    # Trained with a smaller α than is to be proved, and a little outside of the set as well.
    objective = 10 * ld.MonteCarlo(ld.Cube(1024), level=0.05)
    objective = objective + ld.Sublevel(0.0, ld.Cube(512), ld.Boundary(512), margin=0.05, growth=options.growth)
    program = ld.compile(
        PLANT.loop(policy),
        ld.Certificate.barrier(h, 0.9 * ALPHA),
        example=(jnp.zeros(2), None),
        objective=objective,
    )
    return control.led(
        program,
        options,
        5e-3,
        0.02,
        weight=10.0,
        prove=lambda program: ld.Certificate.barrier(learned(program), ALPHA),
        claims=CLAIMS,
        x=np.zeros(2),
        level=0.0,
        prover=PROVER,
    )


def kept(field, points, seconds=20.0):
    """The states that the loop keeps safe, in simulation (EMPIRICAL)."""
    states = jnp.asarray(points.reshape(-1, 2))
    return np.asarray(control.simulate(field, states, seconds=seconds, domain=DOMAIN)[1]).reshape(points.shape[:-1])


def draw(path, field, h, regulator, areas):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 5), layout="compressed", sharey=True)
    points = control.grid(-SAFE, SAFE, 201)
    sides = (
        ("neural controller and h", field, lambda s: 1 - h(s), 1.0, areas[0]),
        ("best clipped LQR", *PLANT.regulated(regulator), regulator["level"], areas[1]),
    )
    for ax, (title, loop, value, level, (proved, simulated)) in zip(axes, sides, strict=True):
        control.regions(ax, points, kept(loop, points), control.values(value, points), level)
        control.stream(ax, loop, points[::10, ::10])
        ax.set_title(f"{title}: proved {proved:.2f} (red), simulated {simulated:.2f} (blue)", fontsize=10)
        ax.set_xlabel("θ (upright at 0)")
    axes[0].set_ylabel("θ'")
    figure.suptitle(f"States that stay inside of |θ| <= {SAFE[0]}, |θ'| <= {SAFE[1]}, with |u| <= {pendulum.LIMIT}")
    figure.savefig(path, dpi=72)


def main():
    options = control.options(
        "A proved safe set of the upright pendulum.",
        rounds=4,
        steps=(4000, "of training in each round"),
        growth=(0.3, "how much the size of the set counts"),
    )
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
        compared = other.submit(pendulum.regulators, SAFE, 1e-3, PROVER)
        led = learn(options)
        best, _ = compared.result()
    found, h, field = led.verification, learned(led.program), control.field_of(led.program)
    control.say(str(found))
    area = lambda inside: float(inside.mean() * np.prod(2 * SAFE))
    coarse = control.grid(-SAFE, SAFE, 201)
    proved = area(control.values(h, control.grid(-SAFE, SAFE, 1001)) >= 0) if found.proof is not None else 0.0
    strongest, others, table = control.compared(best, "safe and invariant")
    regulated, _ = PLANT.regulated(strongest)
    figures = {
        "neural": {"proved area": proved, "simulated area": area(kept(field, coarse))},
        "regulator": {"proved area": strongest["volume"], "simulated area": area(kept(regulated, coarse))},
        "ratio": proved / strongest["volume"],
        "best by V": table,
        "file": control.saved(found, options.out / "proof.npz"),
    }
    claims = {"neural controller: {h >= 0} is safe and invariant": control.claim(found)}
    claims |= others
    claims["simulated regions"] = {"status": "EMPIRICAL", "reason": None}
    settings = {
        "damping": pendulum.DAMPING,
        "limit": pendulum.LIMIT,
        "safe": SAFE.tolist(),
        "alpha": ALPHA,
        "seed": options.seed,
        "rounds": control.rounds(led.history),
    }
    areas = [tuple(figures[side].values()) for side in ("neural", "regulator")]
    draw(options.out / "pendulum_barrier.png", field, h, strongest, areas)
    control.write(options.out, "pendulum_barrier", claims, settings, figures)
    print(f"proved area {proved:.2f} against {strongest['volume']:.2f}: {figures['ratio']:.2f} times")


if __name__ == "__main__":
    main()
