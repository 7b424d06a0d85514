"""Pictures and films of series on disk: what they show, and what is refused."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import fem, io, mesh

import fem_mf as mf
from fem_mf import plotting
from fem_mf.output import XDMFSeries
from fem_mf.plotting import Look
from fem_mf.plotting.__main__ import main
from tests.recorded_runs import TIMES, Run, write_run
from tests.rows import rows

pytest.importorskip("pyvista")
imageio = pytest.importorskip("imageio.v3")

# The package has a function of this name.
module: Any = importlib.import_module("fem_mf.plotting.film")

SIZE = (320, 240)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    return {d: write_run(tmp_path_factory.mktemp(f"run{d}"), d) for d in (1, 2, 3)}


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)


def scene(run: Run, look: Look | None = None) -> tuple[Any, Any]:
    series = module._Series(run.folder / "series.xdmf")
    return series, module._Scene(series, "m", range(len(TIMES)), look)


def coloured(image: np.ndarray) -> np.ndarray:
    """Pixels of a field: neither white nor grey, left of the scale of colours."""
    return np.ptp(image[..., : int(0.8 * SIZE[0]), :3].astype(int), axis=-1) > 30


# --- reading ---------------------------------------------------------------------------------


@rows("d", [1, 2, 3])
def test_series_is_what_the_solver_had(runs: dict[int, Run], d: int) -> None:
    series, _ = scene(runs[d])
    assert series.times == list(TIMES)
    assert series.dim == d
    assert set(series.fields) == set(runs[d].ranges[0])
    assert series.nearest(0.2) == 1
    for step, expected in enumerate(runs[d].ranges):
        for field, limits in expected.items():
            sample = series.sample(step, field)
            np.testing.assert_allclose([sample.values.min(), sample.values.max()], limits)
        assert sample.cells.shape[1] == d + 1
        np.testing.assert_allclose(np.ptp(sample.points, axis=0), 6.0)


def test_a_run_that_is_still_going_on(tmp_path: Path) -> None:
    domain = mesh.create_interval(MPI.COMM_SELF, 3, (0.0, 1.0))
    psi = fem.Function(fem.functionspace(domain, ("Lagrange", 1)))
    functional = SimpleNamespace(derivative=lambda density: density.psi)
    problem: Any = SimpleNamespace(mesh=domain, comm=domain.comm, functional=functional, degree=1)
    density: Any = SimpleNamespace(psi=psi, problem=problem)
    path = tmp_path / "f.xdmf"
    with XDMFSeries(path, problem) as series:
        with pytest.raises(ValueError, match="nothing written yet"):
            plotting.picture(path, tmp_path / "m.png")
        for steps in (1, 2):
            psi.x.array[:] = steps
            series.write(float(steps), density)
            seen = module._Series(path)
            assert seen.times == [1.0, 2.0][:steps]
            assert set(seen.sample(steps - 1, "m").values) == {steps**2}
        plotting.film(path, tmp_path / "m.gif", seconds=0.2, look=Look(size=SIZE))


# --- films -----------------------------------------------------------------------------------


def test_time_is_uniform() -> None:
    times = [0.0, 1e-3, 0.1, 1.0, 1.4, 4.0]
    steps = module._uniform(times, fps=10.0, every=1)
    assert len(steps) == 50
    shown = np.array(times)[steps]
    distance = np.abs(np.subtract.outer(np.linspace(0.0, 4.0, 50), times)).min(axis=1)
    np.testing.assert_allclose(np.abs(shown - np.linspace(0.0, 4.0, 50)), distance)
    assert (steps[0], steps[-1]) == (0, 5)
    assert set(module._uniform(times, 10.0, every=3)) == {0, 3, 5}
    assert module._uniform([2.0], 10.0, 1) == [0]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_films_from_the_command_line(
    runs: dict[int, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], d: int
) -> None:
    words = ["--output", str(tmp_path / "new"), "--size", "320x240"]
    assert main([str(runs[d].folder / "series.xdmf"), *words]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["series-m-first.png", "series-m-last.png", "series-m.mp4"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    film = imageio.imread(tmp_path / "new" / "series-m.mp4")
    assert film.shape[:3] == (75, *SIZE[::-1])  # five seconds
    assert imageio.immeta(tmp_path / "new" / "series-m.mp4")["fps"] == 15.0
    assert coloured(film).mean(axis=(1, 2)).min() > 0.01
    # In uniform time, 0.1 is the nearest step from 3/20 to 13/20 of the film.
    changes = np.abs(np.diff(film[:, 40:].astype(int), axis=0)).mean(axis=(1, 2, 3))
    assert sorted(np.argsort(changes)[-2:] + 1) == [
        pytest.approx(12, abs=1),
        pytest.approx(49, abs=1),
    ]
    for which, number in (("first", 0), ("last", -1)):
        image = imageio.imread(tmp_path / "new" / f"series-m-{which}.png")
        assert np.abs(image[..., :3].astype(int) - film[number]).mean() < 6.0


def test_gif_and_length(runs: dict[int, Run], tmp_path: Path) -> None:
    series, out = runs[1].folder / "series.xdmf", tmp_path / "m.gif"
    plotting.film(series, out, fps=10.0, seconds=2.0, every=2, look=Look(size=SIZE))
    images = imageio.imread(out)
    assert len(images) == 2  # repeated images are one, shown longer
    assert [path.name for path in tmp_path.iterdir()] == ["m.gif"]


@rows("d", [1, 2, 3])
def test_one_camera_one_frame_one_scale(runs: dict[int, Run], d: int) -> None:
    series, images = scene(runs[d], Look(size=SIZE, names=("a", "b", "c")[:d]))
    limits, box = images.limits, images.box.copy()
    cameras: list[Any] = []
    bars: list[Any] = []
    for step in range(3):
        image = images.image(step)
        if d > 1:
            cameras.append((images._plotter.camera.position, images._plotter.camera.parallel_scale))
            bars.append(image[:, int(0.88 * SIZE[0]) :])
            np.testing.assert_array_equal(bars[-1], bars[0])
    assert len(set(cameras)) <= 1
    assert images.limits == limits
    np.testing.assert_array_equal(images.box, box)
    values = [series.sample(step, "m").values for step in range(3)]
    assert limits[0] == 0.0
    assert np.max(values) <= limits[1] < 1.6 * np.max(values)


def test_the_frame_holds_the_mass_and_little_else(tmp_path: Path) -> None:
    problem = mf.Problem(
        mf.box(MPI.COMM_SELF, 12.0, 0.5, dim=2), mf.Potential(lambda x: x[0]), 0.5, degree=1
    )
    with XDMFSeries(tmp_path / "f.xdmf", problem) as series:
        for t, middle in ((0.0, -2.0), (1.0, 3.0)):
            series.write(
                t,
                mf.Density.from_function(
                    problem,
                    lambda x, a=middle: np.exp(-((x[0] - a) ** 2) - x[1] ** 2),
                ),
            )
    seen = module._Series(tmp_path / "f.xdmf")
    for look in (None, Look(whole=True)):
        images = module._Scene(seen, "m", [0, 1], look)
        for step in (0, 1):
            sample = seen.sample(step, "m")
            corners = sample.points[sample.cells]
            inside = (corners >= images.box[:, 0]) & (corners <= images.box[:, 1])
            mass = sample.cell_masses()
            assert mass[inside.all(axis=(1, 2))].sum() >= 0.999 * mass.sum()
        lengths = np.ptp(images.box, axis=1)
        if look is None:
            assert 5.0 < lengths[1] < 8.0 < lengths[0] < 13.0
        else:
            assert lengths.min() >= 24.0
    # A picture of one step has its own frame, that of the mass on the left.
    assert module._Scene(seen, "m", [0], None).box[0, 1] < 3.0


def test_pictures_of_other_fields(runs: dict[int, Run], tmp_path: Path) -> None:
    look = Look(size=SIZE, limits=(0.0, 0.5), whole=True)
    for d in (1, 2, 3):
        series = runs[d].folder / "series.xdmf"
        plotting.picture(series, tmp_path / "m.png", look=look)
        plotting.picture(series, tmp_path / f"u{d}.png", "u", 0.3, look=Look(size=SIZE))
        image = imageio.imread(tmp_path / f"u{d}.png")
        assert image.shape[:2] == SIZE[::-1]
        assert coloured(image).mean() > 0.005


def test_folder_with_history(runs: dict[int, Run], tmp_path: Path) -> None:
    files = plotting.render(
        runs[1].folder, tmp_path, field="u", times=[0.11], kind=None, look=Look(size=SIZE)
    )
    assert [file.name for file in files] == ["convergence.png", "series-u-t0.11.png"]
    assert all(imageio.imread(file)[..., :3].std() > 5.0 for file in files)


def test_film_of_figures(tmp_path: Path) -> None:
    figure_module = pytest.importorskip("matplotlib.figure")
    figure = figure_module.Figure(figsize=(3.2, 2.4), dpi=100)
    axes = figure.subplots()

    def frames() -> Any:
        for colour in ("red", "green", "blue"):
            axes.set_facecolor(colour)
            yield figure

    plotting.film_of_figures(tmp_path / "new" / "f.mp4", frames(), fps=3.0)
    film = imageio.imread(tmp_path / "new" / "f.mp4")
    assert film.shape == (3, 240, 320, 3)
    assert film[:, 120, 160].argmax(axis=1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"must end in \.mp4 or \.gif"):
        plotting.film_of_figures(tmp_path / "f.avi", frames())


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--field", "q"], "no field 'q' in"),
        (["--every", "0"], "must be positive"),
        (["--size", "20x20"], "at least 64"),
        (["--range", "2", "1"], "lower"),
        (["--names", "a", "b"], "d = 1 needs 1"),
    ],
)
def test_mistakes(
    runs: dict[int, Run], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([str(runs[1].folder / "series.xdmf"), *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "no results in" in capsys.readouterr().err


def test_damaged_and_foreign_files(runs: dict[int, Run], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[2].folder, folder)
    values = (folder / "series.bin").read_bytes()
    for size in (100, len(values) - 1):
        (folder / "series.bin").write_bytes(values[:size])
        with pytest.raises(OSError, match=r"series\.bin.* is missing or cut short"):
            plotting.picture(folder / "series.xdmf", tmp_path / "m.png")
    domain = mesh.create_unit_square(MPI.COMM_SELF, 1, 1)
    with io.XDMFFile(MPI.COMM_SELF, tmp_path / "own.xdmf", "w") as file:
        file.write_mesh(domain)
        file.write_function(fem.Function(fem.functionspace(domain, ("Lagrange", 1))), 0.0)
    with pytest.raises(ValueError, match="not written by XDMFSeries"):
        plotting.picture(tmp_path / "own.xdmf", tmp_path / "m.png")


@pytest.mark.parametrize("package", ["pyvista", "imageio.v2", "imageio_ffmpeg"])
def test_missing_packages_name_the_remedy(
    runs: dict[int, Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'fem_mf\[plot\]'"):
        plotting.film(runs[1].folder / "series.xdmf", tmp_path / "m.mp4")


def test_a_machine_without_a_library_is_told(
    runs: dict[int, Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(module.sys, "platform", "linux")
    with pytest.raises(RuntimeError, match="libegl1"):
        plotting.picture(runs[2].folder / "series.xdmf", tmp_path / "m.png")
