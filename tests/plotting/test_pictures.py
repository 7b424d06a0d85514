"""Pictures: the numbers behind them, their size, and what happens without matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import fem, mesh

import fem_mf
from fem_mf import plotting
from fem_mf.plotting import density as density_pictures
from fem_mf.plotting import history as curves
from fem_mf.plotting.__main__ import main
from tests.rows import rows

pytest.importorskip("matplotlib")

COMM = MPI.COMM_SELF


def gaussian(domain: mesh.Mesh, degree: int, shift: float = 0.0) -> Any:
    """ψ = √m for m proportional to exp(−(x₁ − shift)²/2 − ...)."""
    psi = fem.Function(fem.functionspace(domain, ("Lagrange", degree)))
    d = domain.geometry.dim
    centre = np.array([shift, 0.0, 0.0])[:d, None]
    psi.interpolate(lambda x: np.exp(-0.25 * np.sum((x[:d] - centre) ** 2, axis=0)))
    return SimpleNamespace(psi=psi)


def interval() -> mesh.Mesh:
    return mesh.create_interval(COMM, 10, (-4.0, 4.0))


def rectangle(cell: mesh.CellType) -> mesh.Mesh:
    return mesh.create_rectangle(COMM, [(-4.0, -3.0), (4.0, 3.0)], (6, 5), cell)


def box() -> mesh.Mesh:
    return mesh.create_box(COMM, [(-4.0,) * 3, (4.0,) * 3], (4, 4, 4))


def pixels(path: Path) -> Any:
    image = pytest.importorskip("matplotlib.image")
    return image.imread(path)


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn, which are not written."""
    drawn: list[Any] = []
    for module in (density_pictures, curves):
        monkeypatch.setattr(module, "save", lambda figure, path: drawn.append(figure))
    return drawn


@pytest.mark.parametrize(
    ("domain", "degree"),
    [
        (interval, 4),
        (lambda: rectangle(mesh.CellType.triangle), 2),
        (lambda: rectangle(mesh.CellType.quadrilateral), 4),
        (box, 2),
    ],
)
def test_density_pictures(tmp_path: Path, domain: Any, degree: int) -> None:
    density = gaussian(domain(), degree)
    d = density.psi.function_space.mesh.geometry.dim
    path = tmp_path / "new" / "density.png"
    plotting.plot_density(path, density, title="t = 1", points=np.zeros((2, d)))
    assert pixels(path)[..., :3].std() > 0.05


def test_curves_show_the_polynomials_where_the_mass_is(figures: list[Any]) -> None:
    line = mesh.create_interval(COMM, 8, (-16.0, 16.0))
    plotting.plot_density("x.png", {"a": gaussian(line, 6), "b": gaussian(line, 6, 2.0)})
    (axes,) = figures[0].axes
    for curve, shift in zip(axes.lines, (0.0, 2.0), strict=False):
        x, y = curve.get_data()
        assert np.diff(x).max() < 0.3  # of cells 4 long
        np.testing.assert_allclose(y, np.exp(-0.5 * (x - shift) ** 2), atol=0.02)
    low, high = axes.get_xlim()
    assert -8.5 < low < -3.3
    assert 5.3 < high < 10.5
    assert axes.get_xlabel() == "x"


def test_maps_to_compare_share_frame_scale_and_names(figures: list[Any]) -> None:
    square = mesh.create_rectangle(COMM, [(-12.0, -12.0), (12.0, 12.0)], (40, 40))
    low, high = gaussian(square, 1), gaussian(square, 1, shift=2.0)
    high.psi.x.array[:] *= 2.0
    plotting.plot_density("x.png", {"a": low, "b": high}, names=("weight", "bias"))
    first, second, bar = figures[0].axes
    assert first.get_xlim() == second.get_xlim()
    assert (first.get_xlabel(), first.get_ylabel()) == ("weight", "bias")
    assert [axes.get_title() for axes in (first, second)] == ["a", "b"]
    scales = [axes.collections[0].get_clim() for axes in (first, second)]
    assert scales[0] == scales[1] == (0.0, pytest.approx(4.0, rel=0.03))
    x, y = first.get_xlim(), first.get_ylim()
    assert -5.5 < x[0] < -3.2 < 3.2 + 2.0 < x[1] < 7.5
    assert -5.5 < y[0] < -3.2 < 3.2 < y[1] < 5.5
    assert bar.get_ylabel() == "m(weight, bias)"
    with pytest.raises(ValueError, match="d = 2 needs 2"):
        plotting.plot_density("x.png", low, names=("a",))


def test_frame_holds_the_mass(figures: list[Any]) -> None:
    sample = plotting.gather(gaussian(box(), 2, shift=0.5).psi, 2)
    assert sample is not None
    square = plotting.Sampled(sample.points, sample.cells, sample.values**2)
    frame = density_pictures.frame([square], margin=0.0)
    corners = square.points[square.cells]
    inside = ((corners >= frame[:, 0]) & (corners <= frame[:, 1])).all(axis=(1, 2))
    assert square.cell_masses()[inside].sum() >= 0.999 * square.cell_masses().sum()
    np.testing.assert_array_equal(density_pictures.frame([square], whole=True), [[-4, 4]] * 3)


def test_marginals_keep_mass_and_mean(figures: list[Any]) -> None:
    plotting.plot_density("x.png", gaussian(box(), 2, shift=0.5))
    panel = figures[0].axes[0]
    (image,) = panel.images
    values = np.asarray(image.get_array()).T
    (x0, x1), (y0, y1) = panel.get_xlim(), panel.get_ylim()
    area = (x1 - x0) * (y1 - y0) / values.size
    x = x0 + (x1 - x0) * (np.arange(len(values)) + 0.5) / len(values)
    mass = (2.0 * np.pi) ** 1.5
    assert area * values.sum() == pytest.approx(mass, rel=0.03)
    assert values.sum(axis=1) @ x / values.sum() == pytest.approx(0.5, abs=0.05)


def test_history_picture(tmp_path: Path) -> None:
    t = np.linspace(0.0, 5.0, 30)
    history = {"t": t, "energy": np.exp(-t) - 2.0, "dissipation": np.exp(-2 * t), "n": t * 0.0}
    plotting.plot_history(tmp_path / "h.png", history, ["energy", "dissipation", "n"], title="flow")
    assert pixels(tmp_path / "h.png")[..., :3].std() > 0.05
    constant = {"t": [0.0], "energy": [1.0], "dissipation": [0.0]}
    plotting.plot_history(tmp_path / "one.pdf", constant)
    assert (tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ValueError, match="no column"):
        plotting.plot_history(tmp_path / "x.png", history, ["gap"])


@pytest.fixture
def panels(figures: list[Any]) -> Any:
    """The first panel of a picture of a history."""

    def draw(history: Any, lowest: Any = None, convergence: bool = False) -> Any:
        if convergence:
            plotting.plot_convergence("x.png", history, lowest=lowest)
        else:
            plotting.plot_history("x.png", history, ["energy"], lowest=lowest)
        return figures[-1].axes[0]

    return draw


T = np.linspace(0.0, 10.0, 101)
DECAY = {"t": T, "energy": 0.25 + np.exp(-T)}


@pytest.mark.parametrize("convergence", [False, True])
def test_energy_above_the_certified_minimum(panels: Any, convergence: bool) -> None:
    axes = panels(DECAY, fem_mf.Limit(0.25, 1e-3, 0.9), convergence)
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "energy − minimum (0.25)"
    curve, line = axes.lines
    t, excess = curve.get_data()
    # straight to the end, which the uncertainty of the minimum sets
    np.testing.assert_allclose(np.log(excess), -t, atol=1e-9)
    assert t[-1] == pytest.approx(np.log(1e3), abs=0.11)
    assert line.get_linestyle() == "--"
    assert line.get_label() == "e^(−0.9 t), predicted"
    slope = np.polyfit(line.get_xdata(), np.log(line.get_ydata()), 1)[0]
    assert slope == pytest.approx(-0.9)
    assert np.all(line.get_ydata() < np.interp(line.get_xdata(), t, excess))
    assert axes.get_xlim()[1] > 10.0


def test_energy_above_a_number_and_below_it(panels: Any) -> None:
    (curve,) = panels(DECAY, 0.25).lines
    np.testing.assert_allclose(np.log(curve.get_ydata()), -T, atol=1e-9)
    # rounding, or a minimum with a gap: energies below it are left out
    below = {"t": T, "energy": np.where(T < 5.0, DECAY["energy"], 0.25 - 1e-6)}
    axes = panels(below, fem_mf.Limit(0.25, 1e-9, 1.0))
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(4.9)
    # not the minimum of this run
    axes = panels(DECAY, fem_mf.Limit(9.0, 0.0, 1.0))
    assert (axes.get_ylabel(), axes.get_yscale()) == ("energy", "linear")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), DECAY["energy"])
    # a rate that would leave the picture
    axes = panels(DECAY, fem_mf.Limit(0.25, 0.0, 1e6))
    assert np.all(axes.lines[1].get_ydata() <= 1.0)


def test_energy_above_the_last_one_does_not_bend(panels: Any) -> None:
    axes = panels(DECAY)
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == f"energy − last energy ({DECAY['energy'][-1]:.8g})"
    (curve,) = axes.lines
    t, excess = curve.get_data()
    assert 6.0 < t[-1] < 8.0
    np.testing.assert_allclose(np.log(excess), -t, atol=0.12)


@rows(
    "energy",
    [
        5.0 - 0.3 * T,  # a run that has not begun to converge
        1.0 - np.exp(0.1 * T),
        np.where(T[-1] == T, 1.0, 2.0),
    ],
)
def test_energy_itself_where_its_limit_is_unknown(panels: Any, energy: Any) -> None:
    axes = panels({"t": T, "energy": energy})
    assert (axes.get_ylabel(), axes.get_yscale()) == ("energy", "linear")
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), energy)


def test_energy_that_has_converged_to_rounding(panels: Any) -> None:
    noise = 1e-16 * np.random.default_rng(1).normal(size=T.size)
    axes = panels({"t": T, "energy": 0.25 + np.exp(-8.0 * T) + noise})
    assert axes.get_ylabel().startswith("energy − l")
    t, excess = axes.lines[0].get_data()
    np.testing.assert_allclose(np.log(excess), -8.0 * t, atol=0.12)
    assert 3.0 < t[-1] < 5.0


def test_the_limit_beside_a_history_is_used(figures: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    with fem_mf.History(path, COMM) as history:
        for t, energy in zip(T, DECAY["energy"], strict=True):
            history.append({"t": t, "energy": energy})
    fem_mf.Limit(0.25, 1e-9, 1.0).write(path, COMM)
    assert main([str(tmp_path), "--no-film"]) == 0
    axes = figures[0].axes[0]
    assert axes.get_ylabel() == "energy − minimum (0.25)"
    assert len(axes.lines) == 2


def test_convergence_of_any_columns(tmp_path: Path, figures: list[Any]) -> None:
    history = {
        "t": T, "gap": np.exp(-9.0 * T), "mass": 1.0 + 0.0 * T, "contraction": T * np.nan,
        "linear_iterations": 200 * T,
    }  # fmt: skip
    plotting.plot_convergence("x.png", history)
    gap, counts, *empty = figures[0].axes
    assert (gap.get_ylabel(), gap.get_yscale()) == ("gap", "log")
    assert (counts.get_ylabel(), counts.get_yscale()) == ("per step", "symlog")
    assert not empty
    plotting.plot_convergence("x.png", {"energy": T})
    assert figures[1].axes[0].get_xlabel() == "step"
    with pytest.raises(ValueError, match="nothing to draw"):
        plotting.plot_convergence("x.png", {"t": T, "mass": 0.0 * T})


def test_fit_picture_of_the_motorcycle_data(tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "demos" / "data" / "motorcycle.csv"
    times, accel = np.loadtxt(file, delimiter=",", skiprows=1, unpack=True)
    assert len(times) == 133
    assert len(np.unique(times)) == 94
    assert np.all(np.diff(times) >= 0.0)
    assert (times[:2].tolist(), accel[:2].tolist()) == ([2.4, 2.6], [0.0, -1.3])
    assert (times.max(), accel.min(), accel.max()) == (57.6, -134.0, 75.0)
    path = tmp_path / "fit.png"
    plotting.plot_fit(path, times, accel, times, {"zero": 0.0 * times}, labels=("ms", "g"))
    assert pixels(path)[..., :3].std() > 0.05


def test_missing_matplotlib_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'fem_mf\[plot\]'"):
        plotting.plot_fit(tmp_path / "x.png", [0.0], [0.0], [0.0], {})
