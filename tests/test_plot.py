"""Figures: what is drawn, against closed forms and against the program's own answers."""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

import lyapunov_dsl as ld

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb, to_rgba

import lyapunov_dsl.plot as plot
from lyapunov_dsl.plot._plane import BLUE, GREEN, OUTSIDE, RED

pytestmark = pytest.mark.usefixtures("quick_module")

KAPPA = 1.0


@pytest.fixture
def axes() -> Iterator[Any]:
    figure, axes = plt.subplots()
    yield axes
    # Laying out and rendering must work too.
    figure.canvas.draw()
    plt.close(figure)


class Linear(eqx.Module):
    """η' = A η + c, c the context."""

    matrix: Any

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return self.matrix @ state + context


class At(eqx.Module):
    """η(0) as given, and x as the context."""

    state: Any

    def __call__(self, x: Any) -> ld.Start:
        return ld.Start(self.state, x)


def square(prediction: Any, target: Any) -> Any:
    """V = |η|², which decides nothing."""
    return jnp.sum(prediction**2)


def linear(matrix: Any, *, loss: Any = square, domain: Any = None, start: Any = None, **options: Any) -> ld.Program:
    matrix = np.asarray(matrix, np.float32)
    size = len(matrix)
    start = jnp.ones(size) if start is None else jnp.asarray(start, jnp.float32)
    system = ld.System(At(start), Linear(jnp.asarray(matrix)), domain=domain or ld.Box(-2, 2), **options)
    return ld.compile(system, ld.Certificate.exponential(loss, KAPPA), (np.zeros(size, np.float32), 0))


def image(mesh: Any) -> Any:
    """The values of a ground on its grid (masked outside H)."""
    return np.ma.asarray(mesh.get_array())


def corners(mesh: Any) -> np.ndarray:
    """The points of the grid of a ground: with nearest shading, the middles of its cells."""
    c = np.asarray(mesh.get_coordinates())
    return (c[:-1, :-1] + c[1:, 1:]) / 2


def quiver(axes: Any) -> Any:
    return next(c for c in axes.collections if type(c).__name__ == "Quiver")


def contours(axes: Any) -> list[Any]:
    return [c for c in axes.collections if type(c).__name__ == "QuadContourSet"]


def line(axes: Any, label: str) -> np.ndarray:
    return next(drawn for drawn in axes.lines if drawn.get_label() == label).get_xydata()


# V = a² + b² along a' = -a, b' = b: the residual is -2 a² + 2 b² + κ (a² + b²), violated where 3 b² > a² for κ = 1.
SADDLE = np.diag([-1.0, 1.0])


def saddle_residual(points: Any) -> Any:
    a, b = np.moveaxis(np.asarray(points), -1, 0)
    return (KAPPA - 2) * a**2 + (KAPPA + 2) * b**2


def test_level_sets_shows_the_violation_in_closed_form(axes: Any) -> None:
    mesh = plot.level_sets(linear(SADDLE), np.zeros(2, np.float32), 0, axes=axes)
    grid, shown = corners(mesh), image(mesh)
    outside = np.abs(grid).max(axis=-1) > 2 * (1 + 1e-5)
    assert outside.any()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), outside)
    expected = np.maximum(saddle_residual(grid), 0)
    np.testing.assert_allclose(shown[~outside], expected[~outside], atol=1e-4)
    np.testing.assert_allclose(mesh.norm.vmax, shown.max())
    assert mesh.norm.vmin == 0
    assert mesh.cmap(np.ma.masked)[:3] == pytest.approx(to_rgb(OUTSIDE))


def test_level_sets_colors_arrows_by_the_sign_of_the_residual(axes: Any) -> None:
    plot.level_sets(linear(SADDLE), np.zeros(2, np.float32), 0, axes=axes)
    drawn = quiver(axes)
    where, colors = drawn.get_offsets(), drawn.get_facecolors()
    residual = saddle_residual(where)
    clear = np.abs(residual) > 1e-5
    assert (np.abs(where) <= 2 + 1e-5).all()
    assert {bool(r > 0) for r in residual[clear]} == {True, False}
    for color, r in zip(colors[clear], residual[clear], strict=True):
        np.testing.assert_allclose(color, to_rgba(RED if r > 0 else BLUE))
    velocity = np.stack([drawn.U, drawn.V], -1)
    expected = where @ SADDLE.T
    cosine = (velocity * expected).sum(-1)[clear]
    np.testing.assert_allclose(
        cosine, np.linalg.norm(velocity, axis=-1)[clear] * np.linalg.norm(expected, axis=-1)[clear], rtol=1e-4
    )


def test_level_sets_draws_the_contours_of_v_and_the_path_of_inference(axes: Any) -> None:
    plot.level_sets(linear(SADDLE), np.zeros(2, np.float32), 0, axes=axes, levels=[0.5, 1.0, 2.0])
    (lines,) = contours(axes)
    np.testing.assert_allclose(lines.levels, [0.5, 1, 2])
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        np.testing.assert_allclose((path.vertices**2).sum(-1), level, rtol=0.02)
    path = line(axes, "inference")
    t = np.linspace(0, 1, len(path))
    np.testing.assert_allclose(path, np.stack([np.exp(-t), np.exp(t)], -1), rtol=2e-3)
    dot = next(drawn for drawn in axes.lines if drawn.get_marker() == "o")
    np.testing.assert_allclose(dot.get_xydata(), [[1, 1]])
    assert dot.get_color() == GREEN


def test_level_sets_of_a_condition_that_holds_everywhere_is_white(axes: Any) -> None:
    mesh = plot.level_sets(linear(-np.eye(2)), np.zeros(2, np.float32), 0, axes=axes)
    assert image(mesh).max() == 0
    assert len(np.unique(quiver(axes).get_facecolors(), axis=0)) == 1
    np.testing.assert_allclose(quiver(axes).get_facecolors()[0], to_rgba(BLUE))


def test_level_sets_on_a_plane_of_a_larger_state(axes: Any) -> None:
    """V and the residual are those of the true field at states of the plane; arrows are projected."""
    matrix = np.array([[-1.0, 0.0, 0.0], [0.0, 0.5, 0.0], [3.0, 0.0, 0.0]])
    plane = np.array([[1.0, 0, 0], [0, 0.6, 0.8]])
    program = linear(matrix, domain=ld.Ball(0, 1.5))
    mesh = plot.level_sets(program, np.zeros(3, np.float32), 0, axes=axes, plane=plane, vmax=2.5)
    grid, shown = corners(mesh), image(mesh)
    states = grid @ plane
    expected = np.maximum(2 * (states * (states @ matrix.T)).sum(-1) + KAPPA * (states**2).sum(-1), 0)
    inside = np.linalg.norm(grid, axis=-1) < 1.5 * (1 - 1e-5)
    np.testing.assert_allclose(shown[inside], expected[inside], atol=1e-4)
    assert np.ma.getmaskarray(shown)[np.linalg.norm(grid, axis=-1) > 1.5 * (1 + 1e-5)].all()
    assert mesh.norm.vmax == 2.5
    drawn = quiver(axes)
    velocity, expected = np.stack([drawn.U, drawn.V], -1), drawn.get_offsets() @ plane @ matrix.T @ plane.T
    cross = velocity[:, 0] * expected[:, 1] - velocity[:, 1] * expected[:, 0]
    np.testing.assert_allclose(cross, 0, atol=1e-5)
    np.testing.assert_allclose(line(axes, "inference")[0], plane @ np.ones(3), rtol=1e-5)


def test_level_sets_at_another_time_and_of_another_part(axes: Any) -> None:
    """η' = t η, and a barrier h = 1 - a: V = a - 1, dV/dt = t a, allowed -V."""
    system = ld.System(At(jnp.ones(2)), lambda t, s, c: t * s, domain=ld.Box([-1.0, -2.0], [3.0, 2.0]), horizon=2.0)
    both = ld.Certificate.exponential(square, KAPPA) & ld.Certificate.barrier(lambda s: 1 - s[0])
    x = np.zeros(2, np.float32)
    program = ld.compile(system, both, (x, 0))
    mesh = plot.level_sets(program, x, 0, axes=axes, part="barrier", time=1.5, levels=5)
    grid, shown = corners(mesh), image(mesh)
    inside = ~np.ma.getmaskarray(shown)
    expected = np.maximum(1.5 * grid[..., 0] + grid[..., 0] - 1, 0)
    np.testing.assert_allclose(shown[inside], expected[inside], atol=1e-4)
    # Cropped to H, which is not symmetric, and levels in equal steps, because V has both signs.
    np.testing.assert_allclose(axes.get_xlim(), [-1.1, 3.1], atol=0.1)
    np.testing.assert_allclose(axes.get_ylim(), [-2.1, 2.1], atol=0.1)
    np.testing.assert_allclose(np.diff(contours(axes)[0].levels), 4 / 6, rtol=0.02)
    with pytest.raises(ValueError, match=r"part: expected one of \['barrier', 'exponential'\], got 'decay'"):
        plot.level_sets(program, x, 0, axes=axes, part="decay")


def test_phase_portrait_shows_the_field_the_decision_and_the_paths(axes: Any) -> None:
    program = linear(SADDLE, loss=ld.cross_entropy, domain=ld.Box(-2, 2), start=[1.0, 0.1])
    plot.phase_portrait(program, np.zeros(2, np.float32), 0, axes=axes, trajectories=7)
    mesh = next(c for c in axes.collections if type(c).__name__ == "QuadMesh")
    grid = corners(mesh)
    margin = grid[..., 0] - grid[..., 1]
    outside = np.abs(grid).max(axis=-1) > 2 * (1 + 1e-5)
    clear = np.abs(margin) > 1e-4
    expected = np.where(outside, 2, margin > 0)
    np.testing.assert_array_equal(image(mesh)[clear], expected[clear])
    ends = line(axes, "states at the final time")
    assert ends.shape == (7, 2)
    dotted = [drawn.get_xydata() for drawn in axes.lines if drawn.get_linestyle() == ":"]
    assert len(dotted) == 7
    for path, end in zip(dotted, ends, strict=True):
        np.testing.assert_allclose(path[-1], end)
        np.testing.assert_allclose(end, path[0] * np.exp([-1, 1]), rtol=5e-3)
    np.testing.assert_allclose(line(axes, "inference")[-1], [np.exp(-1), 0.1 * np.e], rtol=5e-3)


def test_class_plane_points_to_the_corners() -> None:
    plane = plot.class_plane(10, 3, 7)
    np.testing.assert_allclose(plane @ plane.T, np.eye(2), atol=1e-12)
    for label in (3, 7):
        corner = 2 * np.eye(10)[label] - 1
        np.testing.assert_allclose(corner @ plane.T @ plane, corner, atol=1e-12)
    np.testing.assert_allclose(plane @ (2 * np.eye(10)[3] - 1), [np.sqrt(10), 0], atol=1e-12)


def test_potential_over_time_draws_median_band_and_promise(axes: Any) -> None:
    """V = |η|² from (1, 1) along η' = -2 η is 2 exp(-4t)."""
    program = linear(-2 * np.eye(2))
    x = np.zeros((5, 2), np.float32)
    plot.potential_over_time(program, x, np.zeros(5, np.int32), axes=axes, label="mine", points=9)
    t = np.linspace(0, 1, 9)
    np.testing.assert_allclose(line(axes, "mine"), np.stack([t, 2 * np.exp(-4 * t)], -1), rtol=5e-3)
    np.testing.assert_allclose(line(axes, "promised"), np.stack([t, 2 * np.exp(-KAPPA * t)], -1), rtol=1e-5)
    assert axes.get_yscale() == "log"


class Turning(eqx.Module):
    """The margin of class 0 is x - t: example x is decided rightly (for class 0) while t < x."""

    def __call__(self, t: Any, state: Any, context: Any) -> Any:
        return jnp.array([-1.0, 0.0])


def turning(certificate: Any = None) -> ld.Program:
    start = lambda x: ld.Start(jnp.stack([x[0], jnp.zeros(())]))
    system = ld.System(start, Turning(), domain=ld.Box(-3, 3))
    certificate = certificate or ld.Certificate.exponential(ld.cross_entropy, 1)
    return ld.compile(system, certificate, (np.zeros(1, np.float32), 0))


def test_error_over_time_is_the_error_of_the_program(axes: Any) -> None:
    x = np.array([[0.1], [0.35], [0.6], [0.85], [2.0]], np.float32)
    y = np.zeros(5, np.int32)
    program = turning()
    plot.error_over_time(program, x, y, axes=axes, label="turning", points=8, confidence=0.9)
    drawn = line(axes, "turning")
    t = np.arange(1, 9) / 8
    np.testing.assert_allclose(drawn[:, 0], t)
    np.testing.assert_allclose(drawn[:, 1], [program.error(x, y, stop=s) for s in t])
    np.testing.assert_allclose(drawn[:, 1], (x < t).mean(axis=0))
    (band,) = axes.collections
    vertices = band.get_paths()[0].vertices
    for s, share in zip(t, drawn[:, 1], strict=True):
        at = vertices[np.isclose(vertices[:, 0], s), 1]
        np.testing.assert_allclose([at.min(), at.max()], ld.clopper_pearson(round(5 * share), 5, 0.9), atol=1e-12)
    assert axes.get_ylabel() == "share decided wrongly"


def test_error_over_time_where_the_loss_decides_nothing_is_the_mean_potential(axes: Any) -> None:
    program = linear(-np.eye(2))
    x = np.zeros((3, 2), np.float32)
    plot.error_over_time(program, x, np.zeros(3, np.int32), axes=axes, label="V", points=4)
    t = np.arange(1, 5) / 4
    np.testing.assert_allclose(line(axes, "V"), np.stack([t, 2 * np.exp(-2 * t)], -1), rtol=2e-3)
    assert axes.get_ylabel() == "mean of the potential V"
    with pytest.raises(ValueError, match="confidence: expected a loss that decides, such as cross_entropy"):
        plot.error_over_time(program, x, np.zeros(3, np.int32), axes=axes, confidence=0.95)


def test_error_over_time_of_a_discrete_system_steps_with_its_layers(axes: Any) -> None:
    steps = [lambda state, context: state - jnp.array([0.5, 0.0])] * 2
    system = ld.DiscreteSystem(lambda x: ld.Start(x), steps)
    x = np.array([[0.25, 0.0], [0.75, 0.0], [2.0, 0.0], [-1.0, 0.0]], np.float32)
    y = np.zeros(4, np.int32)
    program = ld.compile(system, ld.Certificate.exponential(ld.cross_entropy, 1), (x[0], y[0]))
    plot.error_over_time(program, x, y, axes=axes, label="layers", points=4)
    np.testing.assert_allclose(line(axes, "layers")[:, 1], [0.25, 0.5, 0.5, 0.75])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 0}, "points: expected a positive whole number, got 0"),
        ({"confidence": 1.0}, r"confidence: expected a probability in \(0, 1\), got 1.0"),
    ],
)
def test_error_over_time_messages(axes: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plot.error_over_time(turning(), np.zeros((2, 1), np.float32), np.zeros(2, np.int32), axes=axes, **options)


DATA = (np.array([[-1.0, -1.0], [1.0, 0.5], [0.5, 1.0], [-0.5, 0.0]], np.float32), np.array([0, 1, 1, 0]))


def test_the_boundary_of_a_linear_predictor_is_where_it_should_be(axes: Any) -> None:
    """The margin of class 1 is 2 a + b - 0.5."""
    x, y = DATA
    margin = lambda points: points @ np.array([2.0, 1.0], np.float32) - 0.5
    predict = lambda points: np.stack([np.zeros(len(points), np.float32), margin(points)], -1)
    mesh = plot.decision_boundary(predict, x, y, axes=axes, extent=2, resolution=81)
    grid = corners(mesh)
    np.testing.assert_allclose(image(mesh), 1 / (1 + np.exp(-margin(grid))), atol=1e-5)
    (boundary,) = contours(axes)
    vertices = np.concatenate([path.vertices for path in boundary.get_paths()])
    np.testing.assert_allclose(margin(vertices), 0, atol=1e-4)
    # Around the middle of the data, (0, 0).
    np.testing.assert_allclose([axes.get_xlim(), axes.get_ylim()], [[-2, 2], [-2, 2]], atol=1e-5)
    points = [c for c in axes.collections if type(c).__name__ == "PathCollection"]
    for label, (drawn, color) in enumerate(zip(points, (BLUE, RED), strict=True)):
        np.testing.assert_allclose(drawn.get_offsets(), x[y == label])
        np.testing.assert_allclose(drawn.get_facecolors()[0], to_rgba(color))
    np.testing.assert_allclose(mesh.cmap(0.5)[:3], [1, 1, 1], atol=0.01)


def test_the_boundary_of_a_program(axes: Any) -> None:
    """The logits start at x and shrink: decided by which coordinate is larger."""
    field = lambda t, s, c: -s
    system = ld.System(vector_field=field, domain=ld.Box(-3, 3))
    x, y = DATA
    y = y.astype(np.int32)
    program = ld.compile(system, ld.Certificate.exponential(ld.cross_entropy, 1), (x[0], y[0]))
    mesh = plot.decision_boundary(program.predict, x, y, axes=axes, resolution=21, data=False)
    grid = corners(mesh)
    shrunk = np.exp(-1) * (grid[..., 1] - grid[..., 0])
    np.testing.assert_allclose(image(mesh), 1 / (1 + np.exp(-shrunk)), atol=2e-3)
    assert not [c for c in axes.collections if type(c).__name__ == "PathCollection"]
    # By default all the data with a margin.
    assert grid.min() < -1.1
    assert grid.max() > 1.1


def test_three_classes_get_a_color_each_that_fades(axes: Any) -> None:
    directions = np.array([[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]], np.float32)
    x = directions * 2
    y = np.arange(3)
    mesh = plot.decision_boundary(lambda points: points @ directions.T, x, y, axes=axes, resolution=41, extent=3)
    colors = image(mesh).reshape(41, 41, 3)
    grid = corners(mesh)
    logits = grid @ directions.T
    shares = np.asarray(jax.nn.softmax(logits, axis=-1))
    largest = shares.max(axis=-1)
    # The fewer doubts, the farther from white; and the hue is that of the likeliest class.
    strength = (1 - colors).max(axis=-1)
    for label, color in enumerate((BLUE, RED, GREEN)):
        mine = (shares.argmax(axis=-1) == label) & (largest > 0.4)
        expected = (largest[mine] - 1 / 3) / (2 / 3) * 0.75 * (1 - np.array(to_rgb(color))).max()
        np.testing.assert_allclose(strength[mine], expected, atol=1e-4)
    assert len(contours(axes)) == 3
    for boundary in contours(axes):
        vertices = np.concatenate([path.vertices for path in boundary.get_paths()])
        two = np.sort(vertices @ directions.T, axis=-1)
        np.testing.assert_allclose(two[:, -1] - two[:, -2], 0, atol=0.15)


def test_a_class_that_is_never_decided_has_no_boundary(axes: Any) -> None:
    x, y = DATA
    first = lambda points: np.tile([3.0, 0.0], (len(points), 1))
    plot.decision_boundary(first, x, y, axes=axes, resolution=5)
    assert not contours(axes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((4, 3), np.float32)}, r"x: expected planar inputs float\[n, 2\], got float32\[4,3\]"),
        ({"y": np.zeros(3, int)}, r"y: expected one class for each input, int\[4\], got int64\[3\]"),
        ({"y": np.array([0, 1, 2, 0])}, r"y: expected classes in \[0, 2\), as many as there are logits, got 2"),
        ({"extent": -1}, "extent: expected a positive finite number, got -1"),
        ({"resolution": 1}, "resolution: expected a whole number of at least 2, got 1"),
        (
            {"predict": lambda points: points[:, 0]},
            r"predict: expected logits float\[25, classes\] with at least two classes, got float32\[25\]",
        ),
    ],
)
def test_decision_boundary_messages(axes: Any, changes: Any, message: str) -> None:
    good = {"predict": lambda points: points, "x": DATA[0], "y": DATA[1], "resolution": 5}
    options = {**good, **changes}
    with pytest.raises(ValueError, match=message):
        plot.decision_boundary(options.pop("predict"), options.pop("x"), options.pop("y"), axes=axes, **options)


@pytest.mark.parametrize("drawing", [plot.phase_portrait, plot.level_sets])
@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (3, {}, r"plane: expected two directions of shape \(2, 3\) for a state of 3, got none"),
        (3, {"plane": np.eye(2)}, r"plane: expected two directions of shape \(2, 3\), got ndarray of shape \(2, 2\)"),
        (2, {"plane": [[1, 0], [1, 1]]}, r"plane: expected two orthonormal directions, got the products \[\[1, 1\]"),
        (2, {"extent": 0}, "extent: expected a positive finite number, got 0"),
        (2, {"time": 1.5}, r"time: expected a time in \[0, 1\], got 1.5"),
    ],
)
def test_messages_of_pictures_of_states(axes: Any, drawing: Any, size: int, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawing(linear(-np.eye(size)), np.zeros(size, np.float32), 0, axes=axes, **options)


def test_pictures_of_states_need_one_example_a_vector_state_and_a_plane_that_meets_h(axes: Any) -> None:
    program = linear(SADDLE)
    with pytest.raises(ValueError, match=r"x: expected one example like .* without a batch axis, got float32\[1,2\]"):
        plot.level_sets(program, np.zeros((1, 2), np.float32), 0, axes=axes)
    away = linear(SADDLE, domain=ld.Ball(center=2.0, radius=0.5))
    with pytest.raises(ValueError, match="plane: expected a plane that meets H within 1 of 0, got none of H"):
        plot.level_sets(away, np.zeros(2, np.float32), 0, axes=axes, extent=1.0)
    system = ld.System(vector_field=lambda t, s, c: -s, readout=jnp.ravel, domain=ld.Box(-1, 1))
    x = np.zeros((2, 2), np.float32)
    matrix = ld.compile(system, ld.Certificate.exponential(square, 1), (x, 0))
    with pytest.raises(ValueError, match=r"state: expected one vector, float\[k\], got float32\[2,2\]"):
        plot.level_sets(matrix, x, 0, axes=axes)
    layers = ld.DiscreteSystem(lambda x: ld.Start(x), [lambda state, context: state])
    discrete = ld.compile(layers, ld.Certificate.exponential(square, 1), (x[0], 0))
    with pytest.raises(ValueError, match="system: expected a continuous System, got a DiscreteSystem"):
        plot.level_sets(discrete, x[0], 0, axes=axes)


@pytest.mark.parametrize("levels", [0, [1.0, 0.5], "many"])
def test_levels_are_checked(axes: Any, levels: Any) -> None:
    with pytest.raises(ValueError, match="levels: expected increasing levels or a positive whole number, got"):
        plot.level_sets(linear(SADDLE), np.zeros(2, np.float32), 0, axes=axes, levels=levels)


def test_vmax_is_checked(axes: Any) -> None:
    with pytest.raises(ValueError, match="vmax: expected a positive finite number, got 0"):
        plot.level_sets(linear(SADDLE), np.zeros(2, np.float32), 0, axes=axes, vmax=0)


def test_nothing_global_is_changed() -> None:
    before, figures = dict(mpl.rcParams), plt.get_fignums()
    figure = mpl.figure.Figure()
    mesh = plot.level_sets(linear(SADDLE), np.zeros(2, np.float32), 0, axes=figure.add_subplot())
    figure.colorbar(mesh)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == figures
