"""python -m lyapunov_checker proof.npz: prints what was proved, or why the proof is refused (exit status 1)."""

import argparse
import sys

from . import Refused, check


def main() -> int:
    parser = argparse.ArgumentParser(prog="lyapunov_checker", description="Checks a proof.")
    parser.add_argument("proof", help="a file that lyapunov_dsl wrote")
    options = parser.parse_args()
    try:
        print(check(options.proof))
    except Refused as error:
        print(f"refused: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
