"""Files and pictures of a run on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest
from dolfinx import fem, mesh

from fem_mf.output import History, XDMFSeries, progress
from fem_mf.plotting import gather, picture, plot_density, plot_fit, plot_history
from fem_mf.plotting.__main__ import main

pyvista = pytest.importorskip("pyvista")
COMM = MPI.COMM_WORLD


def make_mesh(cell: str) -> mesh.Mesh:
    kind = mesh.CellType[cell]
    if cell == "interval":
        return mesh.create_interval(COMM, 9, (-1.0, 2.0))
    if cell in ("triangle", "quadrilateral"):
        return mesh.create_rectangle(COMM, [(-1.0, -1.0), (2.0, 1.0)], (5, 4), kind)
    return mesh.create_box(COMM, [(-1.0, -1.0, -1.0), (2.0, 1.0, 1.0)], (3, 2, 2), kind)


def linear(x: Any) -> Any:
    return (2.0 + x[0] + (0.5 * x[1] if len(x) > 1 else 0.0)) / 3.0


def stand_ins(cell: str, degree: int) -> tuple[Any, Any]:
    domain = make_mesh(cell)
    psi = fem.Function(fem.functionspace(domain, ("Lagrange", degree)))
    potential = fem.Function(fem.functionspace(domain, ("Lagrange", degree + 1)))
    psi.interpolate(linear)
    potential.interpolate(lambda x: x[0])
    functional = SimpleNamespace(derivative=lambda density: potential)
    problem = SimpleNamespace(mesh=domain, comm=COMM, functional=functional, degree=degree)
    return problem, SimpleNamespace(psi=psi, problem=problem)


def on_rank_0(check: Callable[[], None]) -> None:
    """Let rank 0 read; the others fail with it instead of waiting in the next test."""
    error = None
    if COMM.rank == 0:
        try:
            check()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
    error = COMM.bcast(error, root=0)
    assert error is None, error


@pytest.mark.parametrize(
    ("cell", "degree"),
    [("interval", 3), ("triangle", 4), ("quadrilateral", 4), ("tetrahedron", 3), ("hexahedron", 2)],
)
def test_values_are_where_they_belong(shared_tmp_path: Path, cell: str, degree: int) -> None:
    problem, density = stand_ins(cell, degree)
    # Of the degree of ψ, unlike `linear`: values at the nodes are exact.
    density.psi.interpolate(lambda x: linear(x) ** degree)
    path = shared_tmp_path / "new" / "f.xdmf"
    with XDMFSeries(path, problem, every=2) as series:
        for k in range(3):
            series.write(0.5 * k, density)
    d = problem.mesh.topology.dim
    cells = problem.mesh.topology.index_map(d).size_global * degree**d
    nodes = density.psi.function_space.dofmap.index_map.size_global

    def check() -> None:
        reader = pyvista.get_reader(path)
        assert list(reader.time_values) == [0.0, 1.0]
        for step in range(2):
            reader.set_active_time_point(step)
            data = reader.read()
            # No node and no cell twice, and no ghosts.
            assert (data.n_points, data.n_cells) == (nodes, cells)
            assert len(np.unique(data.points.round(9), axis=0)) == nodes
            sizes = data.compute_cell_sizes().cell_data[("Length", "Area", "Volume")[d - 1]]
            np.testing.assert_allclose(sizes.sum(), (3.0, 6.0, 12.0)[d - 1])
            psi = linear(data.points.T) ** degree
            fields = {"psi": psi, "m": psi**2, "u": -2.0 * np.log(psi), "V": data.points[:, 0]}
            for name, values in fields.items():
                np.testing.assert_allclose(data.point_data[name], values, atol=1e-10)

    on_rank_0(check)


def test_unwritable_paths_fail_on_every_rank(shared_tmp_path: Path) -> None:
    problem, _ = stand_ins("interval", 1)
    if COMM.rank == 0:
        (shared_tmp_path / "file").write_text("not a folder")
    COMM.barrier()
    with pytest.raises(OSError, match="cannot write"):
        XDMFSeries(shared_tmp_path / "file" / "f.xdmf", problem)
    with pytest.raises(OSError, match="cannot write"):
        History(shared_tmp_path / "file" / "f.csv", COMM)


def test_an_error_on_one_rank_closes_the_files(shared_tmp_path: Path) -> None:
    problem, density = stand_ins("triangle", 1)
    last = COMM.size - 1
    try:
        with (
            XDMFSeries(shared_tmp_path / "f.xdmf", problem) as fields,
            History(shared_tmp_path / "h.csv", COMM) as history,
        ):
            fields.write(0.0, density)
            history.append({"t": 0.0})
            if COMM.rank == last:
                raise RuntimeError("only here")
    except RuntimeError:
        assert COMM.rank == last
    COMM.barrier()
    assert list(History.read(shared_tmp_path / "h.csv")["t"]) == [0.0]


def test_history_is_the_same_for_all(shared_tmp_path: Path) -> None:
    path = shared_tmp_path / "new" / "history.csv"
    states = [
        SimpleNamespace(t=0.1 * k, scalars=lambda k=k: {"t": 0.1 * k, "n": k}) for k in range(4)
    ]
    with History(path, COMM) as history:
        for state in progress(states, 0.3, COMM):
            history.append(state)
        with pytest.raises(ValueError, match="columns"):
            history.append({"n": 1, "t": 1.0})
    columns = History.read(path)
    assert list(columns["t"]) == [0.1 * k for k in range(4)]
    assert list(columns["n"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("cell", "degree"),
    [("interval", 3), ("triangle", 3), ("quadrilateral", 1), ("tetrahedron", 3), ("hexahedron", 2)],
)
def test_gather_covers_the_mesh_once(cell: str, degree: int) -> None:
    _, density = stand_ins(cell, degree)
    sample = gather(density.psi, degree)
    assert (sample is None) == (COMM.rank > 0)

    def check() -> None:
        assert sample is not None
        d = sample.points.shape[1]
        assert len(np.unique(sample.points.round(9), axis=0)) == len(sample.points)
        np.testing.assert_allclose(sample.values, linear(sample.points.T), atol=1e-12)
        # ∫ψ over [-1, 2] × [-1, 1]^(d-1) is exact: ψ is linear.
        np.testing.assert_allclose(sample.cell_masses().sum(), 2.5 * 2.0 ** (d - 1))

    on_rank_0(check)


def test_pictures_come_from_rank_0(shared_tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    _, density = stand_ins("quadrilateral", 2)
    folder = shared_tmp_path / "pictures"
    plot_density(folder / "density.png", density, points=np.zeros((3, 2)))
    history = {"t": [0.0, 1.0], "energy": [2.0, 1.0], "dissipation": [1.0, 0.1]}
    plot_history(folder / "history.png", history, comm=COMM)
    plot_fit(folder / "fit.png", [0.0, 1.0], [1.0, 2.0], [0.0, 1.0], {"fit": [1.0, 2.0]}, comm=COMM)
    with pytest.raises(ValueError, match="no column"):
        plot_history(folder / "x.png", history, columns=["lambda"], comm=COMM)
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["density.png", "fit.png", "history.png"]


def test_films_come_from_rank_0_and_errors_reach_all(shared_tmp_path: Path) -> None:
    pytest.importorskip("imageio")
    problem, density = stand_ins("interval", 2)
    path, out = shared_tmp_path / "f.xdmf", shared_tmp_path / "pictures"
    with XDMFSeries(path, problem) as series:
        for k in range(2):
            series.write(0.5 * k, density)
    words = [str(path), "--output", str(out), "--size", "160x120"]
    assert main(words) == 0
    assert main([*words, "--field", "q"]) == 1
    assert main(["--fps"]) == 2
    with pytest.raises(ValueError, match="no field 'q'"):
        picture(path, out / "x.png", "q", comm=COMM)
    names = sorted(p.name for p in out.iterdir())
    assert names == ["f-m-first.png", "f-m-last.png", "f-m.mp4"]
