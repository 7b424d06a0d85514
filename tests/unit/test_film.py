"""Films and pictures of results on disk: what is read, what is drawn, and the command line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import fem, io, mesh

from fem_mf import plotting
from fem_mf.output import XDMFSeries
from fem_mf.plotting.__main__ import main
from fem_mf.plotting.framing import Look
from fem_mf.plotting.recorded import Recorded
from tests.recorded_runs import TIMES, Run, write_run

pytest.importorskip("pyvista")
imageio = pytest.importorskip("imageio.v3")

SIZE = (320, 240)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    return {d: write_run(tmp_path_factory.mktemp(f"run{d}"), d) for d in (1, 2, 3)}


def coloured(image: np.ndarray) -> np.ndarray:
    """Pixels of a field: neither white nor grey, left of the colour bar."""
    part = image[..., : int(0.8 * SIZE[0]), :3].astype(int)
    return np.ptp(part, axis=-1) > 30


# --- reading ---------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 3])
def test_recorded_is_what_the_solver_had(runs: dict[int, Run], d: int) -> None:
    run = runs[d]
    series = Recorded(run.folder / "series.xdmf")
    assert series.times == list(TIMES)
    assert series.dim == d
    assert set(series.fields) == set(run.ranges[0])
    assert series.nearest(0.2) == 1
    for step, expected in enumerate(run.ranges):
        grid = series.read(step)
        for field, limits in expected.items():
            values = grid.point_data[field]
            np.testing.assert_allclose([values.min(), values.max()], limits, rtol=1e-12, atol=1e-12)


def test_ghosts_and_copies_are_left_out(tmp_path: Path, mpirun: Any) -> None:
    script = tmp_path / "write.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
import fem_mf
from mpi4py import MPI
from fem_mf.plotting.__main__ import main
from tests.recorded_runs import write_run
folder = Path({str(tmp_path)!r}) / "run"
write_run(folder, 1, MPI.COMM_WORLD)
words = [str(folder / "series.xdmf"), "--no-film", "--size", "160x120"]
codes = main(words), main([*words, "--field", "q"]), main(["--fps"])
codes = MPI.COMM_WORLD.gather(codes)
if codes:
    print("codes", *codes)
"""
    )
    job = mpirun(2, script, timeout=100.0)
    assert "codes (0, 1, 2) (0, 1, 2)" in job.stdout, job.stdout + job.stderr
    assert job.stdout.count("series-m-last.png") == 1
    assert job.stderr.count("error: no field 'q'") == 1
    grid = Recorded(tmp_path / "run" / "series.xdmf").read(0)
    assert len(np.unique(np.round(grid.points[:, 0], 6))) == grid.n_points
    np.testing.assert_allclose(grid.compute_cell_sizes().cell_data["Length"].sum(), 6.0)


def test_a_run_that_goes_on(tmp_path: Path) -> None:
    domain = mesh.create_interval(MPI.COMM_SELF, 3, (0.0, 1.0))
    psi = fem.Function(fem.functionspace(domain, ("Lagrange", 1)))
    functional = SimpleNamespace(derivative=lambda density: density.psi)
    problem: Any = SimpleNamespace(mesh=domain, comm=domain.comm, functional=functional, degree=1)
    density: Any = SimpleNamespace(psi=psi, problem=problem)
    path = tmp_path / "f.xdmf"
    with XDMFSeries(path, problem) as series:
        for steps in (1, 2):
            psi.x.array[:] = steps
            series.write(float(steps), density)
            recorded = Recorded(path)
            assert recorded.times == [1.0, 2.0][:steps]
            assert set(recorded.read(steps - 1).point_data["m"]) == {steps**2}


# --- drawing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "kind"), [(1, "mp4"), (2, "gif"), (3, "mp4")])
def test_command_line(
    runs: dict[int, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str], d: int, kind: str
) -> None:
    words = ["--output", str(tmp_path / "new"), "--format", kind, "--size", "320x240"]
    assert main([str(runs[d].folder / "series.xdmf"), *words]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["series-m-first.png", "series-m-last.png", f"series-m.{kind}"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    film = imageio.imread(tmp_path / "new" / f"series-m.{kind}")
    assert film.shape[:3] == (len(TIMES), *SIZE[::-1])
    masks = coloured(film)
    assert masks.mean(axis=(1, 2)).min() > 0.01
    for a, b in ((0, 1), (1, 2)):
        assert np.abs(film[a, 40:].astype(int) - film[b, 40:]).mean() > 0.3
    # The Gaussian goes to the right.
    if d < 3:
        middles = [_bright_column(image, d) for image in film]
        assert middles[0] < middles[1] < middles[2]
    for which, step in (("first", 0), ("last", -1)):
        image = imageio.imread(tmp_path / "new" / f"series-m-{which}.png")
        assert np.abs(image[..., :3].astype(int) - film[step, ..., :3]).mean() < 6.0


def _bright_column(image: np.ndarray, d: int) -> float:
    part = image[40:, : int(0.8 * SIZE[0]), :3].astype(float)
    # Of the curve the dark line, of the surface what is green and yellow rather than violet.
    weight = 255.0 - part.min(axis=2) if d == 1 else np.maximum(part[..., 1] - part[..., 2], 0.0)
    weight[weight < 0.5 * weight.max()] = 0.0
    rows = np.nonzero(weight)[0]
    top = weight[: rows.min() + 12]  # near the highest point
    return float(np.average(np.nonzero(top)[1]))


def test_folder_with_history(runs: dict[int, Run], tmp_path: Path) -> None:
    files = plotting.render(
        runs[1].folder, tmp_path, field="u", times=[0.11], kind=None, look=Look(size=SIZE)
    )
    expected = ["series-u-t0.1.png", "convergence.png"]
    assert [file.name for file in files] == expected
    assert all(imageio.imread(file)[..., :3].std() > 5.0 for file in files)


def test_functions(runs: dict[int, Run], tmp_path: Path) -> None:
    series = runs[2].folder / "series.xdmf"
    look = Look(size=SIZE, limits=(0.0, 0.5), whole=True)
    plotting.film(series, tmp_path / "m.mp4", every=5, fps=2.0, look=look)
    assert len(imageio.imread(tmp_path / "m.mp4")) == 2
    assert imageio.immeta(tmp_path / "m.mp4")["fps"] == 2.0
    plotting.picture(series, tmp_path / "V.png", "V", 0.3, look=Look(size=SIZE, rescale=True))
    assert coloured(imageio.imread(tmp_path / "V.png")).mean() > 0.05


def test_convergence_of_any_columns(tmp_path: Path) -> None:
    t = np.linspace(0.0, 1.0, 9)
    history = {"t": t, "gap": np.exp(-9.0 * t), "mass": 1.0 + 0.0 * t, "contraction": t * np.nan}
    plotting.plot_convergence(tmp_path / "gap.png", history, title="gap")
    assert imageio.imread(tmp_path / "gap.png")[..., :3].std() > 5.0
    plotting.plot_convergence(tmp_path / "no_t.png", {"energy": t, "linear_iterations": 200 * t})
    with pytest.raises(ValueError, match="nothing to draw"):
        plotting.plot_convergence(tmp_path / "x.png", {"t": t, "mass": 0.0 * t})


# --- mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--field", "q"], "no field 'q': series.xdmf has m, psi, u, V"),
        (["--every", "0"], "must be positive"),
        (["--size", "321x240"], "even numbers"),
        (["--size", "20x20"], "at least 64"),
        (["--range", "2", "1"], "lower"),
    ],
)
def test_mistakes(
    runs: dict[int, Run], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main([str(runs[1].folder), *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


def test_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "no results in" in capsys.readouterr().err
    problem: Any = SimpleNamespace(
        mesh=mesh.create_unit_square(MPI.COMM_SELF, 1, 1), comm=MPI.COMM_SELF, degree=1
    )
    XDMFSeries(tmp_path / "f.xdmf", problem).close()
    with pytest.raises(ValueError, match="nothing written yet"):
        Recorded(tmp_path / "f.xdmf")
    assert main([str(tmp_path)]) == 1
    assert "nothing written yet" in capsys.readouterr().err


def test_damaged_and_foreign_files(runs: dict[int, Run], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(runs[2].folder, folder)
    with (folder / "series.bin").open("r+b") as values:
        values.truncate(100)
    with pytest.raises(OSError, match=r"series\.bin.* is missing or cut short"):
        Recorded(folder / "series.xdmf")
    domain = mesh.create_unit_square(MPI.COMM_SELF, 1, 1)
    with io.XDMFFile(MPI.COMM_SELF, tmp_path / "own.xdmf", "w") as file:
        file.write_mesh(domain)
        file.write_function(fem.Function(fem.functionspace(domain, ("Lagrange", 1))), 0.0)
    with pytest.raises(ValueError, match="DOLFINx itself"):
        Recorded(tmp_path / "own.xdmf")


@pytest.mark.parametrize("package", ["pyvista", "imageio.v2", "imageio_ffmpeg"])
def test_missing_packages_name_the_remedy(
    runs: dict[int, Run], monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'fem_mf\[plot\]'"):
        plotting.render(runs[1].folder)
