"""The tables of the documentation say what the records say."""

import runpy
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "tables.py"


def test_the_tables_are_those_of_the_records():
    run = subprocess.run([sys.executable, SCRIPT, "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + "run `python benchmarks/tables.py`"


def test_a_stale_table_is_seen():
    filled = runpy.run_path(str(SCRIPT))["filled"]
    new = filled("# Page\n\n<!-- table: control -->\n\n| old |\n\n<!-- end of table -->\n\nText.\n")
    assert "old" not in new
    assert "`van_der_pol.py`" in new
    assert new.endswith("\nText.\n")
    assert filled(new) == new


def test_nothing_heavy_is_imported():
    """What is needed rarely is imported where it is used, so that importing the library takes less than 1.5 times as long as importing what
    it rests on (`benchmarks/import_time.py`)."""
    heavy = ("scipy.special", "scipy.stats", "matplotlib", "sklearn", "pandas")
    code = f"import sys, lyapunov_dsl; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
