"""What a file may cost: bounds on sizes that are checked before anything of that size is made, and a clock.

A proof comes from somebody else. So nothing that it says is believed before it is looked at, its size included: a file of
some kilobytes can describe a vector of 10^12 entries, or ask for one by a chain of concatenations.
"""

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

# All arrays of a file together, unpacked: this many times the file's own size, and a little for files that are small.
UNPACKED_TIMES, UNPACKED_FREE = 64, 1 << 20
# Bytes of the header, of a file, and how many arrays it may have.
HEADER, FILE, MEMBERS = 1 << 24, 1 << 30, 20_000
# Entries of all operations of the programs together, and numbers in their constants and matrices, derivatives included.
ENTRIES, NUMBERS = 1 << 22, 1 << 21
# Coefficients of affine forms that one evaluation of a program holds at once, about 100 bytes each.
CELLS = 1 << 22
# Products of numbers that one affine map may take.
PRODUCTS = 1 << 27
# Seconds between two lines that say how far it is.
EVERY = 5.0


class Refused(ValueError):
    """A proof that does not prove what it says, and why."""


class Meter:
    """What the check of one file has cost; refuses where that becomes too much.

    **Arguments:**

    - `seconds`: how long it may take, `None` for no limit.
    - `progress`: whether to say on the standard error how far it is.
    """

    def __init__(self, seconds: float | None = None, progress: bool = False):
        self.began = time.monotonic()
        self.seconds, self.progress = seconds, progress
        self.boxes, self.total, self.numbers, self.entries = 0, 0, 0, 0
        self._said = self.began

    def tick(self) -> None:
        """Looks at the clock."""
        now = time.monotonic()
        if self.seconds is not None and now - self.began > self.seconds:
            raise Refused(f"seconds: it is not checked after {self.seconds:g} s, {self.boxes} boxes of {self.total}")
        if self.progress and now - self._said > EVERY:
            self._said = now
            print(f"{self.boxes} boxes of {self.total}, {now - self.began:.0f} s", file=sys.stderr, flush=True)

    def store(self, entries: int, numbers: int) -> None:
        """Accounts for an operation before it is made."""
        self.entries += entries
        self.numbers += numbers
        if self.entries > ENTRIES or self.numbers > NUMBERS:
            raise Refused(
                f"programs: expected at most {ENTRIES} entries and {NUMBERS} numbers in operations and derivatives, got more"
            )


def number(where: str, value: Any) -> float:
    """A finite number of the header; an integer only where a float holds it exactly."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{where}: expected a number, got {brief(value)}")
    if isinstance(value, int) and abs(value) > 2**53:
        raise Refused(f"{where}: expected a number that a float holds, got an integer beyond 2^53")
    if not math.isfinite(value):
        raise Refused(f"{where}: expected a finite number, got {value}")
    return float(value)


def integer(where: str, value: Any, least: int, most: int) -> int:
    """An integer of the header, between two."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise Refused(f"{where}: expected an integer between {least} and {most}, got {brief(value)}")
    return value


def numbers(where: str, value: Any, count: int | None = None) -> list[float]:
    """A list of finite numbers, as many as are expected."""
    found = [number(where, v) for v in sequence(where, value)]
    if count is not None and len(found) != count:
        raise Refused(f"{where}: expected {count} numbers, got {len(found)}")
    return found


def sequence(where: str, value: Any) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise Refused(f"{where}: expected a list, got {brief(value)}")
    return value


def record(where: str, value: Any, keys: Sequence[str], more: Sequence[str] = ()) -> dict[str, Any]:
    """A record with these entries and no others; those of `more` may be left out."""
    if not isinstance(value, dict):
        raise Refused(f"{where}: expected a record of {', '.join(keys)}, got {brief(value)}")
    wrong = [k for k in value if k not in keys and k not in more] + [k for k in keys if k not in value]
    if wrong:
        raise Refused(f"{where}: expected exactly {', '.join(keys)}, got one with or without {brief(wrong[0])}")
    return value


def brief(value: Any) -> str:
    """A value in a few characters; containers by their type alone, as they may be large."""
    if isinstance(value, str):
        return ascii(value[:40])
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 100:
        return "an integer of many digits"
    return ascii(value) if value is None or isinstance(value, bool | int | float) else f"a {type(value).__name__}"
