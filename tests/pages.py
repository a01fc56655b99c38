"""The code of the pages of the documentation."""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def text(path: str) -> str:
    """A page, by its path in the repository."""
    return (ROOT / path).read_text()


def blocks(path: str, language: str = "python") -> list[str]:
    """The blocks of code in a language, in their order."""
    return re.findall(rf"```{language}\n(.*?)```", text(path), flags=re.DOTALL)


def run(path: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs the Python of a page as one program; the names that it leaves."""
    names = {} if names is None else names
    exec(compile("\n".join(blocks(path)), path, "exec"), names)
    return names
