"""A segway kept upright: the control task of FI-ODE (Huang et al. 2022), with a neural controller and a proved region of attraction.

    python examples/segway.py --out out

States are the angle φ of the frame, the velocity v and the rate φ' (Gurriet et al. 2018); the input is limited to |u| <= 10. FI-ODE
imitates a linear quadratic regulator and certifies an invariant set. Here the controller begins there too and is trained on together
with a V of its own. For all states of {V <= 1} it is proved that the segway comes to rest upright. Beside it the largest region that the
same engine proves for clipped regulators. Writes `results.json` and `segway.png`.
"""

import _control as control
import _stabilize
import jax
import numpy as np

import lyapunov_dsl as ld


def move(numpy, s, u):
    angle, v, rate = s[..., 0], s[..., 1], s[..., 2]
    u = u[..., 0]
    c, q = numpy.cos(angle), numpy.sin(angle)
    push = c * (9.8 * q + 11.5 * v - 1.8 * u) + 68.4 * v - 10.9 * u - 1.2 * rate * rate * q
    turn = c * (9.3 * u - 58.8 * v) + 38.6 * u - 234.5 * v - q * (208.3 + rate * rate * c)
    return [rate, push / (c - 24.7), turn / (c * c - 24.7)]


PLANT = control.Plant(move, np.array([10.0]), np.array([1.0, 2.0, 4.0]))
DESIGNS = [([cost, 1.0, 1.0], effort) for cost in (10.0, 1.0) for effort in (1.0, 0.1, 10.0)]


def begin(gain, form, key):
    one, two, three = jax.random.split(key, 3)
    phi = control.Scaled(control.network(3, 8, 24, 1, two), PLANT.reach)
    policy = control.Policy(PLANT.reach, PLANT.limit, 16, 1, one)
    potential = ld.nn.PositivePotential(phi, 3, margin=0.02)
    return _stabilize.imitated(PLANT, policy, gain, potential, form, three)


if __name__ == "__main__":
    task = _stabilize.Task(
        "segway",
        "Segway",
        PLANT,
        DESIGNS,
        begin,
        axes={"φ": 0, "φ'": 2},
        prover=ld.Prover(boxes=300_000, seconds=400),
    )
    _stabilize.job(task)
