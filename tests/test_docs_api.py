"""The reference: every public name is on an API page and says what it takes, every reference in the documentation leads
somewhere, and the page about the paper has an entry for everything that the paper numbers."""

import ast
import dataclasses
import enum
import importlib
import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = [
    "lyapunov_dsl",
    *(f"lyapunov_dsl.{part}" for part in ("nn", "bounds", "attacks", "plot")),
    "lyapunov_checker",
]
# Of one file each: what they import is no part of them.
FILES = [f"lyapunov_dsl.{part}" for part in ("data", "optim", "testing")]
OURS = ("lyapunov_dsl", "lyapunov_checker")
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def public(module: str) -> dict[str, Any]:
    """The public names of a module with what they stand for."""
    found = {name: value for name, value in vars(importlib.import_module(module)).items() if not name.startswith("_")}
    own = lambda value: module in PACKAGES or getattr(value, "__module__", None) == module
    return {name: value for name, value in found.items() if not isinstance(value, types.ModuleType) and own(value)}


PUBLIC = {f"{module}.{name}": value for module in PACKAGES + FILES for name, value in public(module).items()}
CALLABLE = {name: value for name, value in PUBLIC.items() if inspect.isroutine(value) or inspect.isclass(value)}


def methods(owner: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name in vars(owner):
        value = vars(owner)[name]
        if not name.startswith("_") and isinstance(value, (types.FunctionType, staticmethod, classmethod, property)):
            yield name, value


# Of these, what they raise is theirs to say.
OPEN = [inspect.unwrap(value) for value in CALLABLE.values() if inspect.isfunction(value)]
METHODS = {
    f"{name}.{method}": (value, method, function)
    for name, value in CALLABLE.items()
    if inspect.isclass(value)
    for method, function in methods(value)
}


def resolve(path: str) -> Any:
    """What a dotted name stands for; raises `AttributeError` or `ModuleNotFoundError` where it stands for nothing."""
    package, *rest = path.split(".")
    found = importlib.import_module(package)
    for i, name in enumerate(rest):
        if not hasattr(found, name) and isinstance(found, types.ModuleType):
            importlib.import_module(".".join([package, *rest[: i + 1]]))
        fields = {f.name for f in dataclasses.fields(found)} if dataclasses.is_dataclass(found) else ()
        if name in fields and i == len(rest) - 1:
            return None
        found = getattr(found, name)
    return found


def text(value: Any) -> str:
    return inspect.getdoc(value) or ""


def section(doc: str, title: str) -> str | None:
    """What follows `**title:**`, up to the next title in bold or a paragraph that is no list."""
    found = re.search(rf"^\*\*{title}:\*\*(.*?)(?=^\*\*\w+:\*\*|\Z)", doc, flags=re.MULTILINE | re.DOTALL)
    return None if found is None else found[1]


def named(doc: str) -> list[str]:
    """The names that the list of arguments begins its lines with: "- `a`, `b`: ..."."""
    heads = re.findall(r"^- ((?:`\*{0,2}\w+`(?:, )?)+):", section(doc, "Arguments") or "", flags=re.MULTILINE)
    return [name.lstrip("*") for head in heads for name in re.findall(r"`([*\w]+)`", head)]


def parameters(value: Any) -> list[str]:
    """The parameters of a function, or of a class's `__init__`, without `self`."""
    if inspect.isclass(value) and (issubclass(value, enum.Enum) or inspect.isabstract(value)):
        return []
    if inspect.isclass(value) and issubclass(value, Exception) and "__init__" not in vars(value):
        return []
    try:
        return [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]
    except ValueError:  # a builtin's
        return []


def bare(function: Any) -> Any:
    """A function without what wraps it."""
    if isinstance(function, property):
        function = function.fget
    return inspect.unwrap(getattr(function, "__func__", function))


def source(function: Any) -> ast.AST | None:
    """The syntax of a function, `None` for one that `dataclasses` made."""
    made = not Path(function.__code__.co_filename).exists()
    return None if made else ast.parse(textwrap.dedent(inspect.getsource(function)))


def raises_itself(function: Any) -> bool:
    tree = source(function)
    names = lambda node: {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    raised = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and n.exc is not None] if tree else []
    return any("ValueError" in names(exception) for exception in raised)


def raising(function: Any) -> bool:
    """Whether a function raises `ValueError` itself, or directly calls a private function of ours that does."""
    function = bare(function)
    tree = source(function)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)] if tree else []
    called = {node.func.id for node in calls if isinstance(node.func, ast.Name)}
    helpers = [bare(function.__globals__.get(name)) for name in called]
    private = [
        h for h in helpers if isinstance(h, types.FunctionType) and h.__module__.startswith(OURS) and h not in OPEN
    ]
    return any(map(raises_itself, [function, *private]))


def on_pages() -> list[str]:
    return [
        name
        for page in (ROOT / "docs/api").glob("*.md")
        for name in re.findall(r"^::: (\S+)", page.read_text(), re.MULTILINE)
    ]


def test_every_public_name_is_on_an_api_page_once() -> None:
    shown = on_pages()
    assert len(shown) == len(set(shown))
    whole = {name for name in shown if name in FILES}
    missing = [name for name in PUBLIC if name not in shown and name.rpartition(".")[0] not in whole]
    assert missing == []
    assert sorted(set(shown) - set(PUBLIC) - whole) == []


@pytest.mark.parametrize("name", CALLABLE)
def test_a_public_name_says_what_it_takes_and_raises(name: str) -> None:
    value, doc = CALLABLE[name], text(CALLABLE[name])
    assert doc
    takes, says = parameters(value), named(doc)
    assert [p for p in takes if p not in says] == [], "not among the arguments of the docstring"
    if not inspect.isclass(value) or not inspect.isabstract(value):
        assert [p for p in says if p not in takes] == [], "no such parameter"
    made = vars(value).get("__init__") if inspect.isclass(value) else value
    if isinstance(bare(made), types.FunctionType) and bare(made).__module__.startswith(OURS) and raising(made):
        assert "ValueError" in (section(doc, "Raises") or "")


@pytest.mark.parametrize("name", METHODS)
def test_a_public_method_says_what_it_does_and_raises(name: str) -> None:
    owner, method, function = METHODS[name]
    doc = inspect.getdoc(getattr(owner, method)) or text(function)
    for base in owner.__mro__:  # a property's, and those that `inspect` does not inherit
        doc = doc or text(vars(base).get(method))
    assert doc
    if section(doc, "Arguments") is not None:
        takes = [] if isinstance(function, property) else parameters(bare(function))
        assert [p for p in takes if p not in named(doc)] == []
    if isinstance(function, (staticmethod, classmethod)):
        # That it makes something else is enough, where that says all the rest.
        made = [name for path in referred(doc) for name in named(text(resolve(path)))]
        assert [
            p for p in parameters(bare(function)) if p != "cls" and p not in re.findall(r"`(\w+)`", doc) + made
        ] == []
    if raising(function):
        assert re.search(r"(Raises|raises|Refused)", doc), "it raises ValueError, and does not say so"


def test_what_a_docstring_leaves_out_is_seen() -> None:
    def checked(count: int, width: int = 1) -> None:
        """Something.

        **Arguments:**

        - `count`, `size`: how many, and what is no parameter.

        **Raises:** `ValueError` for none.
        """
        if count < 1:
            raise ValueError("count: expected at least 1")

    doc = text(checked)
    assert parameters(checked) == ["count", "width"]
    assert named(doc) == ["count", "size"]
    assert section(doc, "Returns") is None
    assert raising(checked)
    assert not raising(test_every_public_name_is_on_an_api_page_once)
    # A checking function of the package that the function calls.
    assert raising(PUBLIC["lyapunov_dsl.decay_from_rate"])
    assert not raises_itself(bare(PUBLIC["lyapunov_dsl.decay_from_rate"]))


def referred(page: str) -> list[str]:
    """The names of ours that are referred to, `[text][lyapunov_dsl.x]` and `[`lyapunov_dsl.x`][]`."""
    whole = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    pattern = rf"\[[^\]]*\]\[((?:{'|'.join(OURS)})[\w.]*)\]|\[`((?:{'|'.join(OURS)})[\w.]*)`\]\[\]"
    return [a or b for a, b in re.findall(pattern, whole)]


def is_shown(path: str, shown: list[str]) -> bool:
    """Whether a name, or what it is a part of, is on an API page."""
    return any(path == name or path.startswith(f"{name}.") for name in shown)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_references_lead_somewhere(page: Path) -> None:
    shown = on_pages()
    for path in referred(page.read_text()):
        resolve(path)
        assert is_shown(path, shown), path


def test_references_in_docstrings_lead_somewhere() -> None:
    shown = on_pages()
    found = 0
    for folder in OURS:
        for file in (ROOT / folder).rglob("*.py"):
            for path in referred(file.read_text()):
                found += 1
                resolve(path)
                assert is_shown(path, shown), f"{file.name}: {path}"
    assert found > 50


def test_a_reference_that_leads_nowhere_is_seen() -> None:
    with pytest.raises(AttributeError):
        resolve("lyapunov_dsl.MonteCarlo.nothing")
    with pytest.raises(ModuleNotFoundError):
        resolve("lyapunov_dsl.nothing")
    page = "[`MonteCarlo`][lyapunov_dsl.MonteCarlo], [`lyapunov_checker.check`][]"
    assert referred(page) == ["lyapunov_dsl.MonteCarlo", "lyapunov_checker.check"]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as MkDocs makes them."""
    whole = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    plain = [
        re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in re.findall(r"^#+ (.*)", whole, re.MULTILINE)
    ]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_headings_lead_somewhere(page: Path) -> None:
    """Links to pages are MkDocs' to check; it says nothing of headings that are not there."""
    for file, anchor in re.findall(r"\]\(([\w./]*)#([\w-]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / file if file else page), f"{file}#{anchor}"


def rows(page: str) -> list[str]:
    """What the rows of the page's tables are about: their first cells."""
    return [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]


def numbers(cells: list[str], kind: str) -> list[int]:
    """The numbers that cells such as "eq. 18-21, 45" name."""
    found = []
    for cell in cells:
        if not (match := re.fullmatch(rf"{kind} ([\d, -]+)", cell)):
            continue
        for part in match[1].split(","):
            first, _, last = part.strip().partition("-")
            found += range(int(first), int(last or first) + 1)
    return found


@pytest.mark.parametrize(
    ("kind", "last"),
    [("eq.", 49), ("definition", 6), ("theorem", 3), ("lemma", 2), ("algorithm", 2), ("table", 1), ("figure", 4)],
)
def test_the_page_about_the_paper_has_all_that_is_numbered(kind: str, last: int) -> None:
    cells = [cell.lower() for cell in rows((ROOT / "docs/paper.md").read_text())]
    assert sorted(numbers(cells, re.escape(kind))) == list(range(1, last + 1))


@pytest.mark.parametrize("what", ["truncated cross entropy", "sampling on a hypersphere", "Nero", "attack"])
def test_the_page_about_the_paper_has_its_procedures(what: str) -> None:
    assert any(what in cell for cell in rows((ROOT / "docs/paper.md").read_text()))


@pytest.mark.parametrize("page", ["paper.md", "differences.md"])
def test_files_and_tests_that_are_named_exist(page: str) -> None:
    whole = (ROOT / "docs" / page).read_text()
    files = re.findall(r"`((?:tests|examples|benchmarks|docs|lyapunov_dsl)/[\w./]+)(?:::(\w+))?`", whole)
    assert len(files) > 10
    for file, test in files:
        assert (ROOT / file).exists(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("name", [name for name, value in CALLABLE.items() if inspect.isfunction(value)])
def test_a_public_function_says_what_it_returns(name: str) -> None:
    nothing = inspect.signature(CALLABLE[name]).return_annotation in (None, "None")
    assert nothing or section(text(CALLABLE[name]), "Returns") is not None
