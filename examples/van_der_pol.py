"""The reversed Van der Pol system: how much of its region of attraction can be proved, with a V that is learned.

    python examples/van_der_pol.py --out out

s' = (-s₂, s₁ - (1 - s₁²) s₂). All trajectories that start inside of its limit cycle tend to the origin. The quadratic V of the
linearization proves an ellipse. A polynomial V, |A m(s)|² + ε |s|² with the odd monomials m up to degree 3, is trained on the same
region without a solver, led by the proof. Writes `results.json`, `van_der_pol.png` and the proofs that are found.
"""

import _control as control
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

import lyapunov_dsl as ld

REACH = np.array([2.6, 3.2])
DOMAIN = ld.Box(-REACH, REACH)
KAPPA = 0.01
A = np.array([[0.0, -1.0], [1.0, -1.0]])
PROVER = ld.Prover(boxes=300_000, seconds=240)


def field(t, s, context):
    return jnp.stack([-s[1], s[0] - (1 - s[0] ** 2) * s[1]])


SYSTEM = ld.System(vector_field=field, domain=DOMAIN)


class Monomials(eqx.Module):
    """A m(s), with the six odd monomials up to degree 3."""

    matrix: jax.Array

    def __call__(self, s):
        x, y = s[0] / 2, s[1] / 2
        return self.matrix @ jnp.stack([x, y, x * x * x, x * x * y, x * y * y, y * y * y])


def quadratic():
    """The P of the linearization, and the largest level that is proved, by bisection between one that is and one that is not."""
    p = scipy.linalg.solve_continuous_lyapunov(A.T, -np.eye(2))
    low, high, best = 1.0, 4.0, None
    while high - low > 0.01:
        middle = 0.5 * (low + high)
        found = control.prove(SYSTEM, control.Quadratic(ld.Constant(p)), middle, KAPPA, PROVER)
        if found.proof is None:
            high = middle
        else:
            low, best = middle, found
    assert best is not None
    return p, low, best


def learn(p, options):
    """A V whose sublevel set {V <= 1} is proved."""
    points = control.grid(-REACH, REACH, 121)
    reached = points[control.reached(field, DOMAIN, points)]
    # Nothing can be proved up to the limit cycle itself.
    rows = np.column_stack([np.zeros(len(reached)), options.share * reached])
    root = np.zeros((6, 6))
    root[:2, :2] = 2 * np.linalg.cholesky(p / 2.3).T
    root[2:, 2:] = 0.01 * np.eye(4)
    potential = ld.nn.PositivePotential(Monomials(jnp.asarray(root, jnp.float32)), 2)
    certificate = ld.Certificate.exponential(potential, 5 * KAPPA)
    objective = 3 * ld.Sublevel(1.0, ld.Boxes(rows, rows, 256), ld.Boundary(256), growth=0.5)
    objective = objective + control.residuals(4, 3, 512)
    program = ld.compile(SYSTEM, certificate, example=(jnp.zeros(2), None), objective=objective)
    return control.led(program, options, 1e-2, 0.03, weight=4.0, **control.asked(KAPPA, 2, PROVER)), points


def draw(path, points, potential, p, level, areas):
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, 6.4), layout="constrained")
    x, y = points[..., 0], points[..., 1]
    ax.contourf(x, y, control.reached(field, DOMAIN, points), levels=[0.5, 1.5], colors=["#cfe0f3"])
    ax.contour(x, y, control.values(potential, points), levels=[1.0], colors=["#b3261e"], linewidths=2)
    ax.contour(x, y, np.einsum("...i,ij,...j", points, p, points), levels=[level], colors=["#1f5fa8"], linewidths=2)
    control.stream(ax, field, points[::8, ::8])
    ax.set_title(
        f"Reversed Van der Pol: proved {areas[0]:.2f} with a learned V (red), {areas[1]:.2f} with the quadratic one (blue);\n"
        f"simulated {areas[2]:.2f} (ground)",
        fontsize=9,
    )
    ax.set_xlabel("s₁")
    ax.set_ylabel("s₂")
    figure.savefig(path, dpi=80)


def main():
    options = control.options(
        "A proved region of attraction of the reversed Van der Pol system.",
        rounds=4,
        steps=(3000, "of training in each round"),
        share=(0.95, "how far toward the limit cycle V <= 1 is wanted"),
    )
    p, level, known = quadratic()
    control.say(f"quadratic V: proved up to {level:.3f}")
    led, points = learn(p, options)
    found, potential = led.verification, control.learned(led.program)
    control.say(str(found))
    fine = control.grid(-REACH, REACH, 1001)
    cell = np.prod(2 * REACH) / fine[..., 0].size
    area = float((control.values(potential, fine) <= 1).sum() * cell) if found.proof is not None else 0.0
    ellipse = float(np.pi * level / np.sqrt(np.linalg.det(p)))
    simulated = float(control.reached(field, DOMAIN, points).mean() * np.prod(2 * REACH))
    figures = {"learned V": area, "quadratic V": ellipse, "simulated": simulated, "ratio": area / ellipse}
    files = {
        "learned V": control.saved(found, options.out / "learned.npz"),
        "quadratic V": control.saved(known, options.out / "quadratic.npz"),
    }
    claims = {
        "{V <= 1} of the learned V is a region of attraction": control.claim(found),
        f"{{sᵀPs <= {level:.4g}}} is a region of attraction": control.claim(known),
        "simulated region": {"status": "EMPIRICAL", "reason": None},
    }
    settings = {"seed": options.seed, "steps": options.steps, "rounds": control.rounds(led.history)}
    draw(options.out / "van_der_pol.png", points, potential, p, level, (area, ellipse, simulated))
    control.write(options.out, "van_der_pol", claims, settings, {"areas": figures, "files": files})
    print(f"proved area {area:.2f} against {ellipse:.2f} of the quadratic V, of {simulated:.2f} simulated")


if __name__ == "__main__":
    main()
