"""A planar quadrotor that hovers, six states: a neural controller with a proved region of attraction.

    python examples/quadrotor2d.py --out out

Position (x, y), angle θ and their rates; two rotors, whose thrusts differ from hovering by at most half of it. In six dimensions the
coordinates decide what a proof costs: states are z with s = T z, in which the V of a linear quadratic regulator is |z|², so that its
sublevel sets are balls and the domain is the cube around one. A controller and a quadratic V are trained from there; for all states of
{V <= 1} it is proved that the quadrotor comes to hover at the origin. Beside it the largest region that the same engine proves for
clipped regulators. Writes `results.json` and `quadrotor2d.png`.
"""

import _control as control
import _stabilize
import jax
import numpy as np
import scipy.linalg

import lyapunov_dsl as ld

MASS, INERTIA, ARM, GRAVITY = 0.486, 0.00383, 0.25, 9.81
COSTS, EFFORT = [1.0, 1.0, 100.0, 1.0, 1.0, 1.0], 10.0


def physical(numpy, s, u):
    """The derivatives of (x, y, θ, x', y', θ'), for thrusts u beside those of hovering."""
    # Written so that hovering is an equilibrium in exact arithmetic.
    more, c = (u[..., 0] + u[..., 1]) / MASS, numpy.cos(s[..., 2])
    across, up = -(more + GRAVITY) * numpy.sin(s[..., 2]), more * c + GRAVITY * (c - 1)
    return [s[..., 3], s[..., 4], s[..., 5], across, up, ARM * (u[..., 0] - u[..., 1]) / INERTIA]


def coordinates():
    """T of s = T z, such that the V of the regulator is |z|²."""
    a = np.zeros((6, 6))
    a[:3, 3:] = np.eye(3)
    a[3, 2] = -GRAVITY
    b = np.zeros((6, 2))
    b[4], b[5] = 1 / MASS, ARM / INERTIA * np.array([1, -1])
    p = scipy.linalg.solve_continuous_are(a, b, np.diag(COSTS), EFFORT * np.eye(2))
    return np.linalg.inv(np.linalg.cholesky(p).T)


T = coordinates()
BACK = np.linalg.inv(T)


def move(numpy, z, u):
    s = z @ T.T
    moved = numpy.stack(physical(numpy, s, u), axis=-1) @ BACK.T
    return [moved[..., i] for i in range(6)]


PLANT = control.Plant(move, np.full(2, 0.25 * MASS * GRAVITY), np.full(6, 0.06))
# In the coordinates z; the first is that of the coordinates.
DESIGNS = [
    (T.T @ np.diag([1.0, 1.0, angle, 1.0, 1.0, 1.0]) @ T, effort)
    for angle in (100.0, 30.0)
    for effort in (EFFORT, 3.0, 30.0)
]


def begin(gain, form, key):
    one, two = jax.random.split(key)
    # Nearly linear in the domain: there second derivatives decide.
    policy = control.Policy(np.full(6, 3.0), PLANT.limit, 12, 1, one)
    potential = ld.nn.QuadraticPotential(6, matrix=np.linalg.cholesky(form).T)
    return _stabilize.imitated(PLANT, policy, gain, potential, form, two)


if __name__ == "__main__":
    task = _stabilize.Task(
        "quadrotor2d",
        "Planar quadrotor",
        PLANT,
        DESIGNS,
        begin,
        axes={"z₁": 0, "z₃": 2},
        margin=0.02,
        growth=1e-4,
        shrunk=0.8,
        faces=True,
        prover=ld.Prover(boxes=40_000, seconds=200),
    )
    _stabilize.job(task)
