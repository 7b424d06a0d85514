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
from fem_mf import curves, plotting, sampled

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


def test_several_curves_but_one_map(tmp_path: Path) -> None:
    line = {"a": gaussian(interval(), 2), "b": gaussian(interval(), 1, shift=1.0)}
    plotting.plot_density(tmp_path / "curves.png", line)
    assert (tmp_path / "curves.png").exists()
    plane = {name: gaussian(rectangle(mesh.CellType.triangle), 1) for name in "ab"}
    with pytest.raises(ValueError, match="d = 1"):
        plotting.plot_density(tmp_path / "maps.png", plane)


def test_spread_keeps_mass_and_mean() -> None:
    sample = plotting.gather(gaussian(box(), 2, shift=0.5).psi, 2)
    assert sample is not None
    square = plotting.Sampled(sample.points, sample.cells, sample.values**2)
    positions, masses = sampled.spread(square, 100_000)
    total = square.cell_masses().sum()
    np.testing.assert_allclose(masses.sum(), total)
    assert np.abs(positions).max() <= 4.0
    mean = masses @ positions / total
    np.testing.assert_allclose(mean, [0.5, 0.0, 0.0], atol=0.05)


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
def panels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The first panel of a picture of a history, which is not written."""
    figures: list[Any] = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))

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


@pytest.mark.parametrize(
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


def test_the_limit_beside_a_history_is_used(panels: Any, tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    with fem_mf.History(path, COMM) as history:
        for t, energy in zip(T, DECAY["energy"], strict=True):
            history.append({"t": t, "energy": energy})
    fem_mf.Limit(0.25, 1e-9, 1.0).write(path, COMM)
    drawn: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "save", lambda figure, path: drawn.append(figure))
        assert plotting.main([str(tmp_path), "--no-film"]) == 0
    axes = drawn[0].axes[0]
    assert axes.get_ylabel() == "energy − minimum (0.25)"
    assert len(axes.lines) == 2


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
