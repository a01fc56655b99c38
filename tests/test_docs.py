"""The code of the documentation runs as printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def blocks(path: str) -> list[str]:
    """The Python blocks of a Markdown file."""
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), flags=re.DOTALL)


def test_write_a_certificate_runs_as_printed(capsys):
    code = "\n".join(blocks("docs/write_a_certificate.md"))
    names = {}
    exec(compile(code, "docs/write_a_certificate.md", "exec"), names)
    report = capsys.readouterr().out
    assert "keep_away" in report
    assert "exponential" in report
    # What the page says at its end: the two parts contradict each other, and a state shows it.
    assert "counterexample" in report


@pytest.mark.parametrize("path", ["README.md", "docs/index.md"])
def test_the_declaration_is_the_one_promised(path):
    assert "ld.Certificate.exponential(loss=ld.cross_entropy, kappa=2)" in "\n".join(blocks(path))


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
    (code,) = blocks("README.md")
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (128, 10)
    assert "UNDECIDED" in capsys.readouterr().out
