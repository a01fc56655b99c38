"""What several test files use: proofs whose claims are listed by name, as tables of tests do."""

from collections.abc import Sequence
from typing import Any

import lyapunov_dsl as ld

# The fields of each property that are not those of all of them.
PROPERTIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "decrease": ("Decrease", ("level", "equilibrium", "strict")),
    "definite": ("PositiveDefinite", ("equilibrium",)),
    "enclosed": ("SublevelContained", ("level",)),
    "invariant": ("ForwardInvariant", ()),
    "stays": ("ReachTube", ("start",)),
    "robust": ("ContextRobustness", ("perturbation",)),
}


def property_of(claims: str | Sequence[str] = ("decrease",), library: Any = ld, **options: Any) -> Any:
    """The property of some claims; options that are for none of them are refused by the properties."""
    found: Any = None
    left = set(options)
    for claim in [claims] if isinstance(claims, str) else claims:
        kind, own = PROPERTIES[claim]
        names = ("part", *own, *(() if claim == "stays" else ("domain", "time")))
        given = {name: options[name] for name in names if name in options}
        if claim == "stays":
            given["tube"] = options.get("domain")
            left.discard("domain")
        left -= set(names)
        one = getattr(library, kind)(**given)
        found = one if found is None else found & one
    assert not left, f"{sorted(left)} go with none of {claims}"
    return found


def verify(
    subject: Any,
    certificate: Any = None,
    x: Any = None,
    y: Any = None,
    *,
    budget: dict[str, Any] | None = None,
    rounding: str = "real",
    folder: Any = None,
    progress: bool = False,
    check: bool = True,
    library: Any = ld,
    **options: Any,
) -> Any:
    """Proves claims of a program, or of a system and a certificate."""
    prover = library.Prover(
        **{"rounding": rounding, "checkpoint": folder, "progress": progress, "check": check, **(budget or {})}
    )
    if certificate is not None:
        subject = library.Condition(getattr(subject, "system", subject), certificate)
    at = None if x is None and y is None else (x, y)
    return library.prove(subject, property_of(library=library, **options), at=at, prover=prover)


def certify_robustness(program: Any, x: Any, y: Any, **options: Any) -> Any:
    """Proves radii of inputs."""
    return ld.prove(program, ld.InputRobustness(**options), at=(x, y))
