"""Properties: what is to be shown of a system, as values that `prove` and `synthesize` take.

    ld.prove(program, ld.Decrease(level=(0.1, None)), at=(x, y))
    ld.prove(condition, ld.RegionOfAttraction(level=0.5, equilibrium=np.zeros(2)))
    ld.prove(condition, ld.Decrease(level=1.0) & ld.SublevelContained(level=1.0), at=(x, None))

A property of one example is a list of claims that `_verify` proves box by box, and their options; `&` puts several together.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .._domain import Domain
from .._types import is_finite, levels, shown
from ._tube import Tube


def _set(value: Any) -> bool:
    return value is not None and value is not False


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(np.all(np.asarray(one) == np.asarray(other)))
    except (TypeError, ValueError):
        return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Property:
    """What is to be shown for one example and every state of a region. The properties that this library has are its subclasses; `a & b`
    is both.

    **Arguments:**

    - `domain`: H, a `Box`, a `Ball`, a `Product` of boxes, or a [`lyapunov_dsl.Tube`][]; that of the system by default.
    - `time`: (first, last), in the unit of the system; its horizon by default. Where nothing depends on time, all times.
    - `part`: the name of the certificate that is spoken of, where several are combined.

    **Raises:** `ValueError` for what is no domain.
    """

    claims: ClassVar[tuple[str, ...]] = ()
    # Anything, as what is none of these is refused by a sentence.
    domain: Any = None
    time: Any = None
    part: str | None = None

    def __post_init__(self) -> None:
        if self.domain is not None and not isinstance(self.domain, Domain | Tube):
            raise ValueError(f"domain: expected a Box, a Ball, a Product or a Tube, got {shown(self.domain)}")

    def options(self) -> dict[str, Any]:
        """Returns the claims and the options that were given, by name."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"claims": self.claims, **{name: value for name, value in given.items() if _set(value)}}

    def __and__(self, other: Any) -> "AllProperties":
        """Puts two properties together; raises `ValueError` where an option of both differs."""
        return AllProperties(parts=(*_parts(self), *_parts(other)))


def _parts(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, Property):
        raise ValueError(f"property: expected one such as Decrease() or RegionOfAttraction(...), got {shown(value)}")
    return value.parts if isinstance(value, AllProperties) else (value,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllProperties(Property):
    """Several properties at once, of one region: what `a & b` makes.

    **Arguments:**

    - `parts`: the properties.
    - `domain`, `time`, `part`: those of the parts; not given here.

    **Raises:** `ValueError` for none, for options beside them, and where two of them have different domains, levels or other options.
    """

    parts: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("property: expected one or more, got none")
        if given := [name for name in ("domain", "time", "part") if getattr(self, name) is not None]:
            raise ValueError(f"parts: expected {given[0]} with each of the properties, got it for all of them")
        self.options()

    def options(self) -> dict[str, Any]:
        """Returns the claims and the options of all parts, by name. Raises `ValueError` where they differ."""
        together: dict[str, Any] = {"claims": ()}
        for part in self.parts:
            for name, value in part.options().items():
                if name == "claims":
                    together["claims"] += tuple(c for c in value if c not in together["claims"])
                elif name == "level" and name in together:
                    together[name] = _level(together[name], value)
                elif name in together and not _equal(together[name], value):
                    raise ValueError(
                        f"{name}: expected the same in all properties that are put together, got {shown(together[name])} "
                        f"and {shown(value)}"
                    )
                else:
                    together[name] = value
        return together


def _level(one: Any, other: Any) -> Any:
    """The levels of two properties: that of one may have a least one besides."""
    (least, most), (low, high) = levels(one), levels(other)
    if most is not None and high is not None and most != high:
        raise ValueError(f"level: expected the same in all properties that are put together, got {one!r} and {other!r}")
    most = high if most is None else most
    least = low if least is None else least
    return most if least is None else (least, most)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decrease(Property):
    """dV/dt <= comparison(t, V) (eq. 10 for the exponential certificate) for all times and all states of H between the levels.

    **Arguments:**

    - `level`: c, or (least, c): only states with V up to c, and at least `least`.
    - `equilibrium`: a state inside of H at which the field is 0; around it the second derivatives decide.
    - `strict`: whether < is meant instead of <=, except at the equilibrium.
    - `domain`, `time`, `part`: see [`lyapunov_dsl.Property`][].
    """

    claims: ClassVar[tuple[str, ...]] = ("decrease",)
    level: Any = None
    equilibrium: Any = None
    strict: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositiveDefinite(Property):
    """V is 0 at the equilibrium and above 0 elsewhere in H.

    **Arguments:**

    - `equilibrium`: a state inside of H.
    - `domain`, `time`, `part`: see [`lyapunov_dsl.Property`][].
    """

    claims: ClassVar[tuple[str, ...]] = ("definite",)
    equilibrium: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.equilibrium is None:
            raise ValueError("equilibrium: expected the state at which V is 0, got none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SublevelContained(Property):
    """V > c on the boundary of H, so that {V <= c} is inside. With [`lyapunov_dsl.Decrease`][] no trajectory leaves {V <= c}.

    **Arguments:**

    - `level`: c.
    - `domain`, `time`, `part`: see [`lyapunov_dsl.Property`][].
    """

    claims: ClassVar[tuple[str, ...]] = ("enclosed",)
    level: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if levels(self.level)[1] is None:
            raise ValueError(f"level: expected the level c of the sublevel set, got {self.level!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardInvariant(Property):
    """The field does not point outward on the boundary of H, so that no trajectory leaves H (Nagumo 1942).

    **Arguments:**

    - `domain`, `time`, `part`: see [`lyapunov_dsl.Property`][].
    """

    claims: ClassVar[tuple[str, ...]] = ("invariant",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReachTube(Property):
    """Every trajectory that starts in a box at the first time is in a tube at all its times.

    **Arguments:**

    - `tube`: a [`lyapunov_dsl.Tube`][].
    - `start`: (lower, upper), flat states; the start of the example by default.
    - `domain`, `time`: not given here, as the tube has its own.
    - `part`: see [`lyapunov_dsl.Property`][].
    """

    claims: ClassVar[tuple[str, ...]] = ("stays",)
    tube: Any = None
    start: Any = None

    def __post_init__(self) -> None:
        if not isinstance(self.tube, Tube) or self.domain is not None:
            raise ValueError(f"tube: expected a Tube, and no domain beside it, got {shown(self.tube)}")

    def options(self) -> dict[str, Any]:
        """Returns the claim, and the tube as the domain."""
        found = super().options()
        found["domain"] = found.pop("tube")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextRobustness(Property):
    """An upper bound of V at the last time, for every context within a radius of the example's in every entry: the solution of
    γ' = comparison(t, γ) + L ε G, where L bounds the change of the field with the context and G the gradient of V.

    It rests on [`lyapunov_dsl.Decrease`][] up to a level, and on [`lyapunov_dsl.SublevelContained`][] or
    [`lyapunov_dsl.ForwardInvariant`][], with which it is put together by `&`.

    **Arguments:**

    - `perturbation`: the radius ε >= 0, in the unit of the context.
    - `domain`, `time`, `part`: see [`lyapunov_dsl.Property`][].
    """

    claims: ClassVar[tuple[str, ...]] = ("robust",)
    perturbation: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (is_finite(self.perturbation) and self.perturbation >= 0):
            raise ValueError(f"perturbation: expected a radius >= 0, got {self.perturbation!r}")

    def options(self) -> dict[str, Any]:
        """Returns the claim and its radius, a radius of 0 included."""
        return {**super().options(), "perturbation": self.perturbation}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionOfAttraction(Property):
    """All that start in {V <= c} tend to the equilibrium: V falls strictly there, is positive definite, and {V <= c} is inside of H.

    This follows where nothing depends on time and comparison(t, v) <= 0 for v in [0, c] (Lyapunov's theorem); the checker proves both.

    **Arguments:**

    - `level`: c.
    - `equilibrium`: a state inside of H at which the field is 0.
    - `domain`, `time`, `part`: see [`lyapunov_dsl.Property`][].
    """

    claims: ClassVar[tuple[str, ...]] = ("decrease", "definite", "enclosed")
    level: Any
    equilibrium: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        if levels(self.level)[1] is None:
            raise ValueError(f"level: expected the level c of the region {{V <= c}}, got {self.level!r}")
        if self.equilibrium is None:
            raise ValueError("equilibrium: expected the state that the region is attracted to, got none")

    def options(self) -> dict[str, Any]:
        """Returns the three claims, strict, and their options."""
        return {**super().options(), "strict": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputRobustness:
    """The class that a program decides for does not change within a ball around each input: the largest of some radii for which that
    is proved, and by which rule.

    **Arguments:**

    - `radii`: increasing, in the unit of x; a decimal number means at least that.
    - `norm`: `"2"` or `"inf"`.
    - `rules`: some of `"margin"`, `"tube"`, `"reach"`, `"comparison"`, `"theorem_3"`; the guide on certified robustness says what they
        are. By default all but the last, `"comparison"` only where it can be: it needs an exponential certificate of cross entropy, the
        state as the logits and a Box as the domain, and so does `"theorem_3"`.
    - `kappa`: κ of the comparison rule, by default that of the certificate. It promises more at a higher rate, which is proved like any.
    - `truncation`: γ, the level down to which the comparison rule has V decrease.
    - `boxes`: the most boxes of states per example in which the condition of the comparison rule is proved.
    - `method`: of the bounds through the input module, of [`lyapunov_dsl.bounds.bound`][]; `"ibp"` is the cheapest, for
        networks that were trained by it.
    - `together`: how many examples are bounded at a time.
    """

    radii: Any = (0.1, 0.2, 0.3)
    norm: str = "2"
    rules: Sequence[str] | str | None = None
    kappa: float | int | None = None
    truncation: float | int = 0.01
    boxes: int = 500
    method: str = "crown"
    together: int = 64
