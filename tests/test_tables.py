"""The tables of the documentation say what the records say."""

import importlib.util
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tables_are_those_of_the_records():
    run = subprocess.run([sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + "run `python benchmarks/tables.py`"


def test_a_stale_table_is_seen():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    page = "# Page\n\n<!-- table: control -->\n\n| old |\n\n<!-- end of table -->\n\nText.\n"
    new = tables.filled(page)
    assert new != page and new.startswith("# Page\n") and new.endswith("\nText.\n") and "van_der_pol.py" in new
    assert tables.filled(new) == new


def test_nothing_heavy_is_imported():
    """What the library needs rarely is imported where it is used: importing it is to stay below 1.5 times its dependencies
    (`benchmarks/import_time.py`)."""
    code = "import sys, lyapunov_dsl; print([m for m in ('scipy.special', 'scipy.stats', 'matplotlib', 'sklearn', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
