"""Proof files by hand: dx/dt = A x + u on a box, V = xᵀ P x, dV/dt <= -κ V + c."""

import json

import numpy as np

from lyapunov_checker._file import seal


class Programs:
    """Programs by hand; the arrays that they name."""

    def __init__(self):
        self.arrays, self.operations = {}, []

    def op(self, name, args, size, **more):
        self.operations.append({"name": name, "args": args, "size": size, **more})
        return len(self.operations) - 1

    def array(self, value):
        name = f"numbers.{len(self.arrays)}"
        self.arrays[name] = np.asarray(value)
        return name

    def linear(self, size, *terms):
        return self.op(
            "affine",
            [x for _, x in terms],
            size,
            matrices=[{"dense": self.array(np.array(m, float))} for m, _ in terms],
        )

    def done(self, output):
        operations, self.operations = self.operations, []
        return {"operations": operations, "output": output}


ONE_BOX = [(1,)]


def tree(name, nodes):
    """A tree from its nodes: (rule,) or (0, axis, place)."""
    rows = [(*node, 0, 0.0)[:3] if len(node) == 1 else node for node in nodes]
    return {
        f"{name}.rule": np.array([r[0] for r in rows]),
        f"{name}.axis": np.array([r[1] for r in rows]),
        f"{name}.at": np.array([float(r[2]) for r in rows]),
    }


def cut(low, high, decide, axis=0):
    """Halves of a box of states, in turn along each, until `decide` gives a rule for one."""
    rule = decide(low, high)
    if rule is not None:
        return [(rule,)]
    place, following = 0.5 * (low[axis] + high[axis]), (axis + 1) % len(low)
    first, second = list(high), list(low)
    first[axis] = second[axis] = place
    return [(0, axis + 1, place), *cut(low, first, decide, following), *cut(second, high, decide, following)]


def fine(low, high, size=0.07):
    """A cover by small boxes."""
    return cut(low, high, lambda a, b: 1 if b[0] - a[0] <= size else None)


def write(
    path, *, matrix, weight=None, kappa=1.0, constant=0.0, push=None, drift=None, changing=0.0, bent=0.0, forced=0.0, aging=0.0,
    claims=("decrease",), trees=None, rate=None, **header,
):  # fmt: skip
    """A file with a proof by hand. The field is (A + changing t) x + forced t + drift + u, V = (1 + aging t) xᵀ P x, and
    the comparison -κ v + c + bent v²."""
    p, n = Programs(), len(matrix)
    t, x = p.op("input", [], 1), p.op("input", [], n)
    terms = [(matrix, x)]
    if push is not None:
        terms.append((np.eye(n)[:, :1], p.op("input", [], 1)))
    f = p.linear(n, *terms)
    if drift is not None:
        c = p.op("constant", [], n, value=p.array(np.array(drift, float)))
        f = p.linear(n, (np.eye(n), f), (np.eye(n), c))
    if changing:
        spread = p.linear(n, (np.full((n, 1), changing), t))
        f = p.linear(n, (np.eye(n), f), (np.eye(n), p.op("multiply", [spread, x], n)))
    if forced:
        f = p.linear(n, (np.eye(n), f), (np.full((n, 1), forced), t))
    programs = {"field": p.done(f)}
    t = p.op("input", [], 1)
    x = p.op("input", [], n)
    squares = p.op("multiply", [x, p.linear(n, (np.eye(n) if weight is None else weight, x))], n)
    total = p.linear(1, (np.ones((1, n)), squares))
    if aging:
        total = p.linear(1, ([[1.0]], total), ([[aging]], p.op("multiply", [t, total], 1)))
    programs["value"] = p.done(total)
    p.op("input", [], 1)
    v = p.op("input", [], 1)
    c = p.op("constant", [], 1, value=p.array([float(constant)]))
    square = p.op("multiply", [v, v], 1)
    programs["comparison"] = p.done(p.linear(1, ([[-kappa]], v), ([[1.0]], c), ([[bent]], square)))
    if rate is not None:
        p.op("input", [], 1)
        x = p.op("input", [], n)
        square = p.op("multiply", [x, x], n)
        programs["rate"] = p.done(p.linear(1, (np.full((1, n), rate), square)))
    around = None if push is None else {"center": [0.0], "gain": 1.0 + 1e-8, "slope": 2.0 + 1e-8, **push}
    whole = {
        "format": "lyapunov proof 1", "domain": {"lower": [-1.0] * n, "upper": [1.0] * n}, "time": [0.0, 1.0], "level": [None, None],
        "equilibrium": None, "ball": None, "start": {"lower": [0.0] * n, "upper": [0.0] * n}, "tube": None, "faces": [], "strict": False,
        "claims": list(claims), "programs": programs, "perturbation": around, **header,
    }  # fmt: skip
    arrays = dict(p.arrays)
    for name, nodes in (trees or {}).items():
        arrays |= tree(name, nodes)
    return sealed(path, whole, arrays)


def sealed(path, header, arrays):
    """A file that says this, whatever it is, and whose hash is right."""
    header = {**header, "sha256": seal(header, arrays)}
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return path
