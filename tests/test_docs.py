"""The code of the documentation runs as printed."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import ROOT, blocks, run, text

from lyapunov_checker import Refused, check


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for what a page writes."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("quick")
def test_write_a_certificate_runs_as_printed(capsys):
    names = run("docs/write_a_certificate.md")
    report = capsys.readouterr().out
    assert "keep_away" in report
    assert "exponential" in report
    # What the page says at its end: the two parts contradict each other, and a state shows it.
    assert "counterexample" in report
    assert names["found"].status.proved
    assert names["refuted"].counterexample.residual > 0


@pytest.mark.usefixtures("quick")
def test_certificates_runs_as_printed(capsys):
    run("docs/certificates.md")
    assert "CHECKED" in capsys.readouterr().out


@pytest.mark.usefixtures("quick", "here")
def test_proofs_runs_as_printed(capsys):
    names = run("docs/proofs.md")
    report = capsys.readouterr().out
    assert "CHECKED" in report
    assert "every trajectory that starts there tends to the equilibrium" in report
    assert names["refuted"].counterexample.residual > 0


@pytest.mark.full
@pytest.mark.usefixtures("quick")
def test_robustness_runs_as_printed(capsys):
    run("docs/robustness.md")
    assert "PROVED_REAL" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["README.md", "docs/index.md", "docs/tutorial.md"])
def test_the_declaration_is_the_one_promised(path):
    assert "ld.Certificate.exponential(loss=ld.cross_entropy, kappa=2)" in "\n".join(blocks(path))


def test_the_first_page_has_the_lines_of_the_readme() -> None:
    assert blocks("docs/index.md") == blocks("README.md")


@pytest.mark.usefixtures("quick")
def test_the_readme_runs_as_printed_once_its_names_exist(capsys):
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import lyapunov_dsl as ld

    class Encoder(eqx.Module):
        linear: eqx.nn.Linear

        def __call__(self, x):
            return ld.Start(jnp.zeros(10, x.dtype), self.linear(x))

    y = jnp.arange(128) % 10
    names = {
        "encoder_and_start": Encoder(eqx.nn.Linear(10, 8, key=jax.random.key(0))),
        "field": ld.nn.MLPField(10, 8, width=16, key=jax.random.key(1)),
        "x": jax.nn.one_hot(y, 10),
        "y": y,
    }
    run("README.md", names)
    assert names["logits"].shape == (128, 10)
    assert "UNDECIDED" in capsys.readouterr().out


@pytest.fixture(scope="module")
def recipes() -> tuple[str, list[str]]:
    """What every recipe begins with, and the recipes."""
    first, *others = blocks("docs/recipes.md")
    return first, others


def recipe(recipes: Any, number: int) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(recipes[0] + recipes[1][number], "docs/recipes.md", "exec"), names)
    return names


@pytest.mark.usefixtures("quick_module")
class TestRecipes:
    """Each runs as printed and learns what it says."""

    def test_there_are_four(self, recipes: Any) -> None:
        assert len(recipes[1]) == 4

    def test_regression(self, recipes: Any) -> None:
        names = recipe(recipes, 0)
        assert names["program"].error(names["x"], names["y"]) < 0.02

    def test_barrier(self, recipes: Any) -> None:
        names = recipe(recipes, 1)
        violation = {when: names[when].claims["barrier.violation"].value for when in ("before", "after")}
        assert violation["after"] < 0.01 < 0.1 < violation["before"]
        assert names["after"].claims["domain.left"].value == 0 < names["before"].claims["domain.left"].value

    def test_convolutional_state(self, recipes: Any) -> None:
        names = recipe(recipes, 2)
        assert names["program"].declaration.state.shape == (8, 8, 8)
        assert names["program"].error(names["x"], names["y"]) < 0.05

    def test_own_loss_and_certificate(self, recipes: Any) -> None:
        names = recipe(recipes, 3)
        kept = {when: names[when].claims["finite_time.decay"].value for when in ("before", "after")}
        assert kept["after"] > 0.95 > 0.2 > kept["before"]


@pytest.mark.slow
def test_the_tutorial_runs_as_printed(here: Path, capsys: Any) -> None:
    names = run("docs/tutorial.md")
    printed = capsys.readouterr().out
    assert names["program"].error(names["test_x"], names["test_y"]) < 0.06
    assert (here / "digits.png").stat().st_size > 10_000
    # What the page says about what is printed.
    feasible = names["feasible"]
    assert feasible.claims["exponential.feasible"].assurance.name == "REFUTED"
    assert 0.002 <= feasible.claims["exponential.level"].value <= 0.0035
    assert names["report"].problems == ()
    assert names["report"].premises["the condition holds for the nominal input on all of H"].name == "REFUTED"
    assert "error against compute" in printed


@pytest.mark.full
@pytest.mark.usefixtures("quick", "here")
def test_certify_it_runs_as_printed(capsys: Any) -> None:
    names = run("docs/tutorials/certify.md")
    printed = capsys.readouterr().out
    assert names["program"].error(names["test_x"], names["test_y"]) < 0.08
    found, mended = names["found"], names["mended"]
    assert found.accuracy(0.1) >= found.accuracy(0.2) >= found.accuracy(0.3) > 0.7
    assert found.accuracy(0.1) > 0.9
    # What the page says about the comparison rule: its premise about decrease fails, and not for the lower promise.
    decrease = "V decreases for the nominal input on all of H above the truncation"
    fails = [any(p.statement.startswith(decrease) and not p.holds for p in of) for of in found.premises["comparison"]]
    assert sum(fails) > 35
    assert np.mean(mended.radii["comparison"] > 0) > 0.6
    assert "stays in that tube" in printed.split("proved, in real arithmetic:")[1]


@pytest.mark.full
@pytest.mark.usefixtures("quick")
def test_train_a_safe_controller_runs_as_printed(here: Path) -> None:
    names = run("docs/tutorials/controller.md")
    # The set that the page calls 3.86 of the 6.0 of the safe box.
    area = np.pi / np.sqrt(np.linalg.det(np.asarray(names["potential"].form, float)))
    assert 3.2 < area < 4.5
    assert names["led"].history[0][0].name == "REFUTED"
    assert (here / "controller.png").stat().st_size > 10_000
    # One number changed, and the file is refused.
    held = dict(np.load(here / "controller.npz"))
    weights = max((name for name in held if held[name].dtype == np.float64), key=lambda name: held[name].size)
    held[weights] = held[weights] + 1e-9
    np.savez(here / "changed.npz", **held)
    with pytest.raises(Refused):
        check(here / "changed.npz")


# Trains twice.
LONG = {"choose_a_measure"}
HOWTO = [
    pytest.param(path.stem, marks=[pytest.mark.full] if path.stem in LONG else [])
    for path in sorted((ROOT / "docs/howto").glob("*.md"))
]


@pytest.mark.usefixtures("quick", "here")
@pytest.mark.parametrize("name", HOWTO)
def test_how_to_pages_run_as_printed(name: str, capsys: Any) -> None:
    """Each with the output that it shows, but for the numbers, which depend on rounding."""
    path = f"docs/howto/{name}.md"
    run(path)
    words = lambda text: " ".join(re.sub(r"[-+]?\d+\.?\d*(e[-+]?\d+)?", "0", text).split())
    printed = words(capsys.readouterr().out)
    for shown in blocks(path, "text"):
        # A line of dots stands for what is left out.
        for part in shown.split("\n...\n"):
            assert words(part) in printed


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r": ([\w/]+\.md)$", text("mkdocs.yml"), flags=re.MULTILINE))
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert listed == pages
