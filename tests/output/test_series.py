"""Files of a run on one rank: readers see what the solver wrote, whatever happens to the run."""

from __future__ import annotations

import io as text_io
import logging
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh

from fem_mf.output import History, XDMFSeries, progress

pyvista = pytest.importorskip("pyvista")
COMM = MPI.COMM_SELF


def make_mesh(cell: str) -> mesh.Mesh:
    kind = mesh.CellType[cell]
    if cell == "interval":
        return mesh.create_interval(COMM, 6, (-1.0, 2.0))
    if cell in ("triangle", "quadrilateral"):
        return mesh.create_rectangle(COMM, [(-1.0, -1.0), (2.0, 1.0)], (4, 3), kind)
    return mesh.create_box(COMM, [(-1.0, -1.0, -1.0), (2.0, 1.0, 1.0)], (2, 2, 2), kind)


def curved_mesh(cell: str, degree: int) -> mesh.Mesh:
    flat = make_mesh(cell)
    nodes = fem.functionspace(flat, ("Lagrange", degree, (2,)))
    x = nodes.tabulate_dof_coordinates()[:, :2]
    x = x * (1.0 + 0.1 * np.sum(x**2, axis=1, keepdims=True))
    element = basix.ufl.element("Lagrange", cell, degree, shape=(2,))
    return mesh.create_mesh(COMM, nodes.dofmap.list.astype(np.int64), ufl.Mesh(element), x)


def exact_psi(x: Any, power: int) -> Any:
    return ((5.0 + x[0]) / 7.0) ** power


def stand_ins(domain: mesh.Mesh, degree: int, power: int = 1) -> tuple[Any, Any]:
    """A problem and a density with ψ = ((5 + x₁)/7)^power · scale and V = x₁."""
    psi = fem.Function(fem.functionspace(domain, ("Lagrange", degree)))
    potential = fem.Function(fem.functionspace(domain, ("Lagrange", degree + 1)))
    psi.interpolate(lambda x: exact_psi(x, power))
    potential.interpolate(lambda x: x[0])
    functional = SimpleNamespace(derivative=lambda density: potential)
    problem = SimpleNamespace(mesh=domain, comm=domain.comm, functional=functional, degree=degree)
    return problem, SimpleNamespace(psi=psi, problem=problem)


def read_step(path: Path, step: int) -> Any:
    reader = pyvista.get_reader(path)
    reader.set_active_time_point(step)
    return reader.read()


def times(path: Path) -> list[float]:
    return list(pyvista.get_reader(path).time_values)


def check_fields(data: Any, scale: float, power: int = 1) -> None:
    psi = scale * exact_psi(data.points.T, power)
    exact = {"psi": psi, "m": psi**2, "u": -2.0 * np.log(psi), "V": data.points[:, 0]}
    assert set(data.point_data.keys()) == set(exact)
    for name, values in exact.items():
        assert np.abs(data.point_data[name] - values).max() < 1e-12 * max(1.0, scale**2), name


def check_cells(data: Any, d: int, size: float) -> None:
    """The cells cover the domain once, share their vertices and keep their orientation."""
    sizes = data.compute_cell_sizes().cell_data[("Length", "Area", "Volume")[d - 1]]
    assert sizes.min() > 0.0
    np.testing.assert_allclose(sizes.sum(), size)
    assert len(np.unique(data.points.round(9), axis=0)) == data.n_points


@pytest.mark.parametrize(
    ("cell", "degree", "subdivide"),
    [
        ("interval", 8, None),
        ("triangle", 1, None),
        ("triangle", 5, None),
        ("quadrilateral", 6, None),
        ("quadrilateral", 4, 3),
        ("tetrahedron", 3, None),
        ("tetrahedron", 4, 1),
        ("hexahedron", 4, None),
        ("hexahedron", 1, 2),
    ],
)
def test_pyvista_reads_the_series(
    tmp_path: Path, cell: str, degree: int, subdivide: int | None
) -> None:
    domain = make_mesh(cell)
    d = domain.topology.dim
    problem, density = stand_ins(domain, degree, power=degree)
    path = tmp_path / "new" / "folder" / "fields.xdmf"
    with XDMFSeries(path, problem, subdivide=subdivide) as series:
        for t in (0.0, 0.1, 1.0 / 3.0):
            assert series.write(t, density)
            density.psi.x.array[:] *= 2.0
            assert times(path)[-1] == t
    assert times(path) == [0.0, 0.1, 1.0 / 3.0]
    pieces = subdivide or degree
    nodes = fem.functionspace(domain, ("Lagrange", pieces)).dofmap.index_map.size_global
    for step in range(3):
        data = read_step(path, step)
        assert data.n_points == nodes
        assert data.n_cells == domain.topology.index_map(d).size_global * pieces**d
        check_fields(data, 2.0**step, degree)
    check_cells(data, d, (3.0, 6.0, 12.0)[d - 1])
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == ["fields.bin", "fields.xdmf"]


@pytest.mark.parametrize(("cell", "degree"), [("triangle", 2), ("quadrilateral", 3)])
def test_curved_meshes_keep_their_nodes(tmp_path: Path, cell: str, degree: int) -> None:
    problem, density = stand_ins(curved_mesh(cell, degree), degree)
    problem.degree = 1  # the mesh needs more pieces than ψ
    path = tmp_path / "curved.xdmf"
    with XDMFSeries(path, problem) as series:
        series.write(0.0, density)
    data = read_step(path, 0)
    assert data.n_points == problem.mesh.geometry.x.shape[0]
    check_fields(data, 1.0)


def test_u_is_finite_where_the_density_vanishes(tmp_path: Path) -> None:
    problem, density = stand_ins(make_mesh("triangle"), 1)
    density.psi.x.array[:3] = 0.0
    with XDMFSeries(tmp_path / "f.xdmf", problem) as series:
        series.write(0.0, density)
    assert np.isfinite(read_step(tmp_path / "f.xdmf", 0).point_data["u"]).all()


def test_every_and_force_and_times(tmp_path: Path) -> None:
    problem, density = stand_ins(make_mesh("interval"), 1)
    path = tmp_path / "f.xdmf"
    with XDMFSeries(path, problem, every=3) as series:
        written = [series.write(0.1 * k, density) for k in range(5)]
        assert series.write(0.45, density, force=True)
        with pytest.raises(ValueError, match="later than"):
            series.write(0.45, density, force=True)
        with pytest.raises(ValueError, match="later than"):
            series.write(float("nan"), density, force=True)
    assert written == [True, False, False, True, False]
    assert times(path) == [0.0, 0.1 * 3, 0.45]
    series.close()
    with pytest.raises(ValueError, match="closed"):
        series.write(1.0, density)
    for options in ({"every": 0}, {"subdivide": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1, not 0"):
            XDMFSeries(path, problem, **options)
    with pytest.raises(ValueError, match="must end in"):
        XDMFSeries(tmp_path / "f.txt", problem)


def test_a_new_series_replaces_an_old_one(tmp_path: Path) -> None:
    problem, density = stand_ins(make_mesh("triangle"), 1)
    for steps in (3, 1):
        with XDMFSeries(tmp_path / "f.xdmf", problem, overwrite=steps == 1) as series:
            for k in range(steps):
                series.write(float(k), density)
    with pytest.raises(FileExistsError, match=r"--overwrite\).*--restart\)"):
        XDMFSeries(tmp_path / "f.xdmf", problem)
    assert times(tmp_path / "f.xdmf") == [0.0]
    check_fields(read_step(tmp_path / "f.xdmf", 0), 1.0)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    problem, _ = stand_ins(make_mesh("interval"), 1)
    (tmp_path / "file").write_text("not a folder")
    for open_file in (
        lambda: XDMFSeries(tmp_path / "file" / "f.xdmf", problem),
        lambda: History(tmp_path / "file" / "f.csv", COMM),
    ):
        with pytest.raises(OSError, match="cannot write"):
            open_file()


def test_kill_leaves_readable_files(tmp_path: Path) -> None:
    program = f"""
        import itertools, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import fem_mf
        from test_series import make_mesh, stand_ins
        problem, density = stand_ins(make_mesh("triangle"), 2)
        series = fem_mf.XDMFSeries("f.xdmf", problem)
        history = fem_mf.History("h.csv", problem.comm)
        for k in itertools.count():
            series.write(0.1 * k, density)
            history.append({{"t": 0.1 * k, "step": k}})
            print(k, flush=True)
            density.psi.x.array[:] *= 2.0
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if int(line) == 10:
                run.send_signal(signal.SIGKILL)
                break
        printed = [10, *map(int, run.stdout)]
    assert run.returncode == -signal.SIGKILL
    path = tmp_path / "f.xdmf"
    seen = times(path)
    assert len(seen) in (printed[-1] + 1, printed[-1] + 2)
    assert seen == [0.1 * k for k in range(len(seen))]
    for step in (0, len(seen) - 1):
        check_fields(read_step(path, step), 2.0**step)
    history = History.read(tmp_path / "h.csv")
    assert list(history["step"]) == list(range(len(history["t"])))
    assert len(history["t"]) >= printed[-1] + 1


def test_history_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = [
        {"t": 0.1 * k, "energy": rng.normal() * 1e-7, "iterations": k, "gap": np.float64(np.nan)}
        for k in range(4)
    ]
    path = tmp_path / "run" / "history.csv"
    with History(path, COMM) as history:
        assert History.read(path) == {}
        history.append(rows[0])
        assert path.read_text().startswith("t,energy,iterations,gap\n0.0,")
        for row in rows[1:]:
            history.append(SimpleNamespace(scalars=lambda row=row: row))
        with pytest.raises(ValueError, match="columns"):
            history.append({"t": 1.0})
    columns = History.read(path)
    assert list(columns) == list(rows[0])
    for name, column in columns.items():
        np.testing.assert_array_equal(column, [row[name] for row in rows])
    assert columns["iterations"].dtype == int
    with pytest.raises(ValueError, match="closed"):
        history.append(rows[0])
    path.write_text(path.read_text() + "0.4,1.0,4")  # killed in the middle of a line
    assert len(History.read(path)["t"]) == 4


class Terminal(text_io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_passes_states_and_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []

    def flow() -> Any:
        try:
            for k in range(5):
                yield SimpleNamespace(t=0.1 * k, energy=1.25, fixed_point_iterations=3)
        finally:
            closed.append(True)

    monkeypatch.setattr(logging.getLogger("fem_mf"), "handlers", [])
    for stream in (text_io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        assert [s.t for s in progress(flow(), 0.4, COMM)] == [0.1 * k for k in range(5)]
        assert ("energy 1.25" in stream.getvalue()) is stream.isatty()
        for state in progress(flow(), 0.4, COMM, "flow"):
            if state.t > 0.0:
                break
        with pytest.raises(RuntimeError, match="stop"):
            consume(progress(flow(), 0.4, COMM))
    assert len(closed) == 6


def consume(states: Any) -> None:
    for _ in states:
        raise RuntimeError("stop")
