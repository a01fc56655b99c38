"""`prove`: one verb for all properties."""

from typing import Any, overload

from .._cache import cached
from .._condition import Condition
from .._types import kind, shown
from ._arguments import check_like
from ._branch import Prover
from ._properties import InputRobustness, Property
from ._radii import Robust
from ._robust import decide_robustness
from ._verify import Verification, decide


@overload
def prove(subject: Any, property: Property, *, at: Any = None, prover: Prover | None = None) -> Verification: ...


@overload
def prove(subject: Any, property: InputRobustness, *, at: Any = None, prover: Prover | None = None) -> Robust: ...


@cached()
def prove(subject: Any, property: Any, *, at: Any = None, prover: Prover | None = None) -> Verification | Robust:
    """Proves a property, or refutes it with a counterexample, or says what is left undecided.

    **Arguments:**

    - `subject`: a [`lyapunov_dsl.Program`][], or a [`lyapunov_dsl.Condition`][], which is a certificate put on a system.
    - `property`: such as [`lyapunov_dsl.Decrease`][], [`lyapunov_dsl.RegionOfAttraction`][] or [`lyapunov_dsl.InputRobustness`][];
        `a & b` is both.
    - `at`: the pair (x, y) that the property is about: one example without a batch axis, y `None` without targets; for
        `InputRobustness` inputs and integer classes with a leading batch axis. Where x is the state itself it may be left out if
        the property has an equilibrium.
    - `prover`: a [`lyapunov_dsl.Prover`][], how it is searched for; not with `InputRobustness`, which has options of its own.

    **Returns:** a [`lyapunov_dsl.Verification`][], whose `status` is `CHECKED` where a second program recomputed the proof, and
    `PROVED_REAL` or `PROVED_FLOAT` where it did not; for `InputRobustness` a [`lyapunov_dsl.Robust`][], which the second program
    checks where its `check` is called.

    **Raises:** `ValueError` for a subject, a property or an example that do not fit together,
    `lyapunov_dsl.bounds.UnknownPrimitive` for a function that cannot be bounded.
    """
    if prover is not None and not isinstance(prover, Prover):
        raise ValueError(f"prover: expected a Prover such as Prover(boxes=1000), got {shown(prover)}")
    if at is not None and not (isinstance(at, tuple | list) and len(at) == 2):
        raise ValueError(f"at: expected a pair (x, y), with y None where there are no targets, got {shown(at)}")
    x, y = (None, None) if at is None else at
    if isinstance(property, InputRobustness):
        if prover is not None:
            raise ValueError(
                "prover: expected none with InputRobustness, whose own options say how it is proved, got one"
            )
        return decide_robustness(subject, x, y, property)
    if not isinstance(property, Property):
        raise ValueError(f"property: expected one such as Decrease() or RegionOfAttraction(...), got {shown(property)}")
    if hasattr(subject, "declaration"):
        check_like(subject.declaration, x, y)
        subject = subject.condition
    if not isinstance(subject, Condition):
        raise ValueError(f"subject: expected a Program, or a Condition(system, certificate), got {kind(subject)}")
    return decide(subject, x, y, Prover() if prover is None else prover, **property.options())
