"""Modules are short, and import one way."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lyapunov_dsl"
MODULES = {path.relative_to(PACKAGE).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
# Lines of a module. One that is longer says why in its docstring, and stands here.
MOST = 400
LONG: set[str] = set()
# Each imports from those before it alone, of these.
LAYERS = (
    "_types", "_constant", "_domain", "_system", "_potential", "_certificate", "_condition", "_measure", "_objective",
    "_certify", "_compile", "_fit", "_synthesize",
)  # fmt: skip
# None of these imports another.
APART = ("nn", "attacks", "plot", "optim", "data", "bounds", "_prove")
ALLOWED = {("_prove", "bounds"): "proofs are made of bounds", ("nn", "bounds"): "certified layers know their constants"}


def imports(parts):
    """The modules that a module of the package imports as it is loaded."""
    found, waiting = set(), [ast.parse(MODULES[parts].read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*parts[: len(parts) - node.level], *(node.module or "").split("."))
            base = tuple(part for part in base if part)
            for name in node.names:
                places = [(*base, name.name), (*base, name.name, "__init__"), base, (*base, "__init__")]
                found.add(next(place for place in places if place in MODULES))
        later = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        waiting += [] if later else ast.iter_child_nodes(node)
    return found


IMPORTS = {parts: imports(parts) for parts in MODULES}


def between(one, other):
    """Which modules of one file or folder import some of another."""
    return [".".join(m) for m, found in IMPORTS.items() if m[0] == one and any(i[0] == other for i in found)]


def test_no_module_imports_itself_by_way_of_others():
    order = list(graphlib.TopologicalSorter(IMPORTS).static_order())
    assert order.index(("_types",)) < order.index(("_compile",)) < order.index(("__init__",))


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_layers_import_from_those_before(layer):
    for later in LAYERS[layer + 1 :]:
        assert not between(LAYERS[layer], later)
        # The names are those of files and folders.
        assert any(parts[0] == later for parts in MODULES)


@pytest.mark.parametrize("one", APART)
def test_some_know_nothing_of_each_other(one):
    for other in APART:
        assert one == other or (one, other) in ALLOWED or not between(one, other)


def test_bounds_know_nothing_of_certificates():
    known = lambda name: {i[0] for m, found in IMPORTS.items() if m[0] == name for i in found}
    assert known("bounds") == {"bounds", "_cache", "_interpret", "_jaxprs", "_types"}
    assert known("_interpret") == {"_cache", "_interpret", "_jaxprs"}


def test_modules_are_short():
    paths = [*MODULES.values(), *(ROOT / "lyapunov_checker").glob("*.py")]
    long = {str(path.relative_to(ROOT)) for path in paths if len(path.read_text().splitlines()) > MOST}
    assert long == LONG
