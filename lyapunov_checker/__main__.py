"""Checks a proof: prints what was proved, or why it is refused.

    python -m lyapunov_checker [--seconds N] proof.npz

Exit status: 0 where the proof holds; 1 where the file is refused, with one line that says why; 2 for arguments that do not fit.
"""

import argparse
import io
import sys

from . import Refused, check


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError
    return value


def main() -> int:
    parser = argparse.ArgumentParser(prog="lyapunov_checker", description="Checks a proof.")
    parser.add_argument("proof", help="a file that lyapunov_dsl wrote")
    parser.add_argument("--seconds", type=_seconds, help="refuse what is not checked by then; no limit otherwise")
    options = parser.parse_args()
    for stream in (sys.stdout, sys.stderr):
        # A path may hold what the terminal cannot show.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        print(check(options.proof, seconds=options.seconds, progress=True))
    except Refused as error:
        print(f"refused: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
