"""How much longer importing this library takes than importing jax, equinox and diffrax.

    python benchmarks/import_time.py    # half a minute; docs/results/import_time.json

Every round is a process of its own that imports first those three and then the library, so that both times are of one process.
"""

import json
import subprocess
import sys
from typing import Any

import common
import numpy as np

CODE = """
import json, time
began = time.perf_counter()
import jax, equinox, diffrax
others = time.perf_counter() - began
import lyapunov_dsl
print(json.dumps([others, time.perf_counter() - began]))
"""


def main() -> None:
    run = lambda: json.loads(
        subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    )
    run()
    ratios = [(lambda both: both[1] / both[0])(run()) for _ in range(11)]
    found: dict[str, Any] = {"least": min(ratios), "median": float(np.median(ratios)), "largest": max(ratios)}
    print(found)
    common.write(None, "import_time", {"environment": common.environment(), "ratio": found})


if __name__ == "__main__":
    main()
