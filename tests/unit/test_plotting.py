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

from fem_mf import plotting, sampled

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
