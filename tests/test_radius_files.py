"""Certified radii as files: the checker confirms what is true, and refuses what was changed."""

import io
import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flint import arb

import lyapunov_dsl as ld
from lyapunov_checker import Refused, check
from lyapunov_checker._file import read, seal
from lyapunov_checker._radius import matrix_norm
from lyapunov_dsl._rollout import EulerInference

X = np.array([[0.5, 0.1, -0.3], [0.2, 0.9, -0.4], [0.4, 0.39, -0.4]])
Y = np.array([0, 1, 0])


class Encoder(eqx.Module):
    by: object = eqx.field(static=True)

    def __call__(self, x):
        return ld.Start(0.5 * x, self.by(x))


def proof_of(encoder, field, radius, *, norm="2", gain=None, radii=None, steps=4, readout=None):
    more = {} if readout is None else {"readout": readout}
    system = ld.System(input=encoder, vector_field=field, domain=ld.Box(-9.0, 9.0), **more)
    radii = list(radius) if radii is None else radii
    radius = np.array([max(radii)] * len(X)) if np.ndim(radius) else np.full(len(X), radius)
    return ld.RadiusProof(EulerInference(system, steps), norm, gain, X, Y, radius, radii)


def straight(t, s, c):
    return 4.0 * (c - s)


def curved(t, s, c):
    return 2.0 * (jnp.tanh(1.3 * c + 0.2 * s * jnp.sin(t)) - s)


def written(header, arrays):
    """A file that is sealed anew, as one who changes it would."""
    header = {k: v for k, v in header.items() if k != "sha256"}
    header["sha256"] = seal(header, arrays)
    file = io.BytesIO()
    np.savez_compressed(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return file.getvalue()


@pytest.mark.parametrize(("norm", "share"), [("2", math.sqrt(2)), ("inf", 2.0)])
def test_a_linear_network_is_confirmed_up_to_its_exact_radius(tmp_path, norm, share):
    # z = x whatever the steps are, as they go all the way: a margin changes by √2 ε or by 2 ε.
    margin = np.array([0.4, 0.7, 0.01])
    radii = sorted([*(0.998 * margin / share), *(1.002 * margin / share)])
    found = proof_of(Encoder(lambda x: x), straight, radii, norm=norm).save(tmp_path / "a.npz")
    np.testing.assert_allclose(found, 0.998 * margin / share)
    verdict = check(tmp_path / "a.npz")
    assert "for each of 3 inputs" in str(verdict)
    assert "given, and not shown here" in str(verdict)


def test_what_is_in_a_file_holds_for_inputs_of_the_balls(tmp_path):
    readout = lambda s: jnp.stack([s[0] + s[1], 2.0 * s[1], s[2] - s[0] ** 3])
    proof = proof_of(Encoder(jax.nn.softplus), curved, (1e-3, 0.01, 0.05, 0.1, 0.2, 0.4), readout=readout, steps=3)
    with jax.enable_x64(True):
        logits = jax.jit(jax.vmap(proof.network))
        proof.y = np.asarray(logits(X)).argmax(axis=1)
        found = proof.save(tmp_path / "a.npz")
        assert (found > 0).sum() >= 2
        step = np.random.default_rng(0).normal(size=(20_000, 1, 3))
        step /= np.linalg.norm(step, axis=-1, keepdims=True)
        points = (X + step * found[:, None]).reshape(-1, 3)
        classes = np.asarray(logits(points)).argmax(axis=1).reshape(-1, len(X))
    assert (classes == proof.y)[:, found > 0].all()


def test_a_gain_is_given_and_not_shown(tmp_path):
    # Twice the truth, of start and context.
    proof = proof_of(Encoder(lambda x: x), straight, (0.1, 0.25), gain=2.0)
    assert list(proof.save(tmp_path / "a.npz")) == [0.1, 0.1, 0.0]
    assert "given, and not shown here" in str(check(tmp_path / "a.npz"))
    assert "change by at most 2.0 times" in str(check(tmp_path / "a.npz"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("radii") / "a.npz"
    proof_of(Encoder(jnp.tanh), curved, (0.05,)).save(path)
    header, arrays = read(path)
    check(written(header, arrays))
    return header, arrays


CHANGES = {
    "a larger radius": ("radius", lambda v: v * 1.5, "starts may be farther"),
    "a smaller distance": ("errors", lambda v: v * 0.99, "starts may be farther"),
    "a smaller distance later": ("errors", lambda v: v * np.array([1, 1, 0.9, 1, 1]), "after step 2"),
    "contexts that are nearer": ("reach", lambda v: v * 0.99, "contexts may be farther"),
    "another class": ("y", lambda v: (v + 1) % 3, "a margin is not above 0"),
    "a class that there is not": ("y", lambda v: v + 3, "classes in"),
    "a negative class": ("y", lambda v: v - 3, "classes in"),
    "other centers": ("centers", lambda v: v + 0.01, "starts may be farther"),
    "another context": ("contexts", lambda v: v + 0.01, "contexts may be farther"),
    "another input": ("x", lambda v: v + 0.01, "starts may be farther"),
    "no number": ("radius", lambda v: v * np.nan, "finite"),
    "negative distances": ("errors", lambda v: -v, "no negative"),
    "a radius of 0": ("radius", lambda v: 0 * v, "radii > 0"),
    "a shape": ("centers", lambda v: v[:, 1:], "of shape"),
    "integers": ("x", lambda v: v.astype(np.float32), "float64"),
    "no examples": ("y", lambda v: v[:0], "integer class"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_that_was_changed_is_refused(file, name):
    header, arrays = file
    array, change, why = CHANGES[name]
    with pytest.raises(Refused, match=why):
        check(written(header, arrays | {array: change(arrays[array])}))


def test_headers_that_were_changed_are_refused(file):
    header, arrays = file
    for key, value in (
        ("norm", "1"),
        ("norm", None),
        ("times", []),
        ("times", [0.0, "a", 0.5, 0.75]),
        ("times", header["times"][:-1]),
        ("gain", -1.0),
        ("gain", True),
        ("programs", {k: v for k, v in header["programs"].items() if k != "readout"}),
        ("programs", header["programs"] | {"more": header["programs"]["step"]}),
        ("programs", header["programs"] | {"readout": header["programs"]["step"]}),
        ("format", "lyapunov radius 2"),
    ):
        with pytest.raises(Refused):
            check(written(header | {key: value}, arrays))
    with pytest.raises(Refused):
        check(written(header | {"more": 1}, arrays))


def test_a_gain_that_is_written_in_is_seen(file):
    # It lowers what is shown, and so it is printed as given.
    header, arrays = file
    assert "gives" not in str(check(written(header, arrays)))
    assert "change by at most 0.5 times" in str(check(written(header | {"gain": 0.5}, arrays)))


def test_weights_that_were_changed_are_refused_or_another_program(file):
    header, arrays = file
    names = [name for name, array in arrays.items() if "." in name and array.dtype == np.float64 and array.size]
    known, refused = check(written(header, arrays)).sha256, 0
    for name in names:
        try:
            verdict = check(written(header, arrays | {name: arrays[name] + 0.3}))
        except Refused:
            refused += 1
        else:
            # Right, of another network.
            assert verdict.sha256 != known
    assert refused > len(names) / 2


def test_matrix_norms_are_never_below_the_truth():
    rng = np.random.default_rng(0)
    for _ in range(50):
        a = rng.normal(size=(rng.integers(1, 6), rng.integers(1, 6))) * 10.0 ** rng.integers(-200, 100)
        for norm, order in (("2", 2), ("inf", np.inf)):
            found = float(matrix_norm([[arb(v) for v in row] for row in a.tolist()], norm))
            exact = np.linalg.norm(a, order)
            assert exact * (1 - 1e-12) <= found <= exact * 1.002
    wide = matrix_norm([[arb(1, 0.5), arb(0, 0.1)], [arb(0, 0.1), arb(1, 0.5)]], "2")
    assert wide >= 1.6
    assert matrix_norm([[arb(0)]], "2") == 0
    assert not matrix_norm([[arb("nan")]], "2") <= 1e300


def test_what_the_checker_does_not_know_is_said(tmp_path):
    rounded = proof_of(Encoder(jnp.round), straight, (0.1,))
    with pytest.raises(ValueError, match="expected a network that the checker knows"):
        rounded.save(tmp_path / "a.npz")
    far = proof_of(Encoder(lambda x: x), straight, (5.0,))
    with pytest.raises(ValueError, match="steps confirm, got none of 3"):
        far.save(tmp_path / "a.npz")
    assert not (tmp_path / "a.npz").exists()
