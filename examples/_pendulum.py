"""What the pendulum examples share: the plant, and the regulators that they are compared with.

θ'' = sin θ - 0.3 θ' + u, θ = 0 upright, |u| <= 0.95: gravity's greatest torque is 1.
"""

import _control as control
import numpy as np

DAMPING, LIMIT = 0.3, 0.95
DESIGNS = [([1.0, rate], effort) for rate in (0.01, 0.1, 1, 10, 100) for effort in (0.01, 0.1, 1, 10, 100)]


def move(numpy, s, u):
    return [s[..., 1], numpy.sin(s[..., 0]) - DAMPING * s[..., 1] + u[..., 0]]


def plant(reach):
    return control.Plant(move, np.array([LIMIT]), reach)


def rays(count):
    """Half a circle: V and the loop are symmetric."""
    angles = np.linspace(0, np.pi, count, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def regulators(reach, kappa, budget):
    """The best of 25 clipped regulators."""
    return control.regulators(plant(reach), DESIGNS, kappa, budget, rays(180), rays(720), 1000)
