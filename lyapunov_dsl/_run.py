"""How far a training run is, and whether Ctrl-C was pressed in it."""

import contextlib
import dataclasses
import math
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass
class Run:
    """How far a run is: what a checkpoint holds beside the arrays.

    **Arguments:**

    - `step`: the number of steps taken.
    - `history`: the records of the epochs that ended.
    - `losses`, `logged`: of the steps of the epoch under way, and how many of them are in the metrics.
    - `seconds`: of the epoch under way.
    - `least`, `chosen`: the least validation error, and its epoch (`None` before there is one).
    """

    step: int = 0
    history: list[dict[str, int | float]] = dataclasses.field(default_factory=list)
    losses: list[int | float] = dataclasses.field(default_factory=list)
    logged: int = 0
    seconds: int | float = 0.0
    least: int | float = math.inf
    chosen: int | None = None

    @classmethod
    def fits(cls, record: Any) -> bool:
        """Whether a record, as read from a file, is one of a run."""
        number = lambda x: type(x) in (int, float)
        count = lambda x: type(x) is int and 0 <= x < 2**31
        return (
            isinstance(record, dict)
            and set(record) == {field.name for field in dataclasses.fields(cls)}
            and all(count(record[name]) for name in ("step", "logged"))
            and all(number(record[name]) for name in ("seconds", "least"))
            and (record["chosen"] is None or count(record["chosen"]))
            and all(isinstance(record[name], list) for name in ("history", "losses"))
            and all(number(loss) for loss in record["losses"])
            and record["logged"] <= len(record["losses"])
            and all(isinstance(epoch, dict) and all(map(number, epoch.values())) for epoch in record["history"])
        )

    def take(self, pending: list[Any]) -> None:
        """Brings the losses of the last steps from the device."""
        self.losses += [float(loss) for losses in jax.device_get(pending) for loss in losses]
        pending.clear()

    def window(self, epoch: int) -> dict[str, Any]:
        """The line of metrics for the steps since the last one."""
        mean = float(np.mean(self.losses[self.logged :]))
        self.logged = len(self.losses)
        return {"record": "steps", "epoch": epoch, "step": self.step, "loss": mean}

    def epoch(self, epoch: int) -> dict[str, int | float]:
        """The record of the epoch that ends here, which is now part of the history."""
        mean = float(np.mean(self.losses))
        self.history.append({"epoch": epoch, "step": self.step, "loss": mean, "seconds": self.seconds})
        self.losses, self.logged, self.seconds = [], 0, 0.0
        return self.history[-1]


@contextlib.contextmanager
def interrupts() -> Iterator[list[bool]]:
    """A list that is filled when Ctrl-C is pressed: in the middle of a step the donated arrays are gone, so that nothing
    could be saved. Pressed again, it interrupts at once."""
    seen: list[bool] = []

    def handle(number: Any, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(True)

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread may set handlers; where the signal is ignored (a job in the background) that is respected.
    mine = threading.current_thread() is threading.main_thread() and before not in (signal.SIG_IGN, None)
    if mine:
        signal.signal(signal.SIGINT, handle)
    try:
        yield seen
    finally:
        if mine:
            signal.signal(signal.SIGINT, before)
