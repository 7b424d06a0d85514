"""Meshes do not depend on the number of ranks, and bad files fail on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI

import basix
import numpy as np
import pytest
from dolfinx.io import XDMFFile
from dolfinx.mesh import Mesh

import fem_mf
from fem_mf.mpi import global_sum

COMM = MPI.COMM_WORLD
MESHES = Path(__file__).resolve().parents[2] / "meshes"


def size(mesh: Mesh) -> tuple[int, int, float, float]:
    """Cells, vertices, volume, second moment of the owned cells' vertices; global."""
    tdim = mesh.topology.dim
    kind = mesh.basix_cell()
    points, weights = basix.make_quadrature(kind, 2)
    element = basix.create_element(basix.ElementFamily.P, kind, 1)
    slopes = element.tabulate(1, points)[1:, :, :, 0]
    cells = mesh.topology.index_map(tdim)
    x = mesh.geometry.x[mesh.geometry.dofmaps[0][: cells.size_local], :tdim]
    values = np.abs(np.linalg.det(np.einsum("aqn,cnb->cqab", slopes, x))) @ weights
    volume, moment = global_sum(mesh.comm, [values.sum(), np.sum(x**4)])
    return cells.size_global, mesh.topology.index_map(0).size_global, volume, moment


MAKERS: dict[str, Callable[[MPI.Comm], Mesh]] = {
    "interval": lambda comm: fem_mf.interval(comm, 2.0, 0.1, grading=2.0),
    "triangles": lambda comm: fem_mf.disk(comm, 2.0, 0.3, grading=2.0),
    "quadrilaterals": lambda comm: fem_mf.disk(comm, 2.0, 0.3, "quadrilateral", 2.0),
    "tetrahedra": lambda comm: fem_mf.ball(comm, 2.0, 0.8),
    "hexahedra": lambda comm: fem_mf.ball(comm, 2.0, 0.6, "hexahedron", 2.0),
    "box of triangles": lambda comm: fem_mf.box(comm, (2.0, 1.0), 0.3),
    "box of hexahedra": lambda comm: fem_mf.box(comm, 2.0, 0.7, cell="hexahedron", grading=1.5),
    "file": lambda comm: fem_mf.read_mesh(MESHES / "perforated_disk.msh", comm),
}


@pytest.mark.parametrize("name", MAKERS)
def test_same_mesh_at_any_number_of_ranks(name: str) -> None:
    mesh, serial = MAKERS[name](COMM), MAKERS[name](MPI.COMM_SELF)
    assert size(mesh)[:2] == size(serial)[:2]
    assert size(mesh)[2:] == pytest.approx(size(serial)[2:], rel=1e-12)


@pytest.mark.parametrize("name", ["interval", "triangles", "tetrahedra"])
def test_refinement_keeps_the_ghost_layer(name: str) -> None:
    mesh = MAKERS[name](COMM)
    fine = fem_mf.refine(mesh)
    assert size(fine)[0] == 2**mesh.topology.dim * size(mesh)[0]
    assert size(fine)[2] == pytest.approx(size(mesh)[2], rel=1e-12)
    for m in (mesh, fine):
        ghosts = int(global_sum(COMM, m.topology.index_map(m.topology.dim).num_ghosts))
        assert (ghosts > 0) == (COMM.size > 1)


def test_xdmf_written_in_parallel(shared_tmp_path: Path) -> None:
    mesh = MAKERS["triangles"](COMM)
    with XDMFFile(COMM, shared_tmp_path / "mesh.xdmf", "w") as file:
        file.write_mesh(mesh)
    back = fem_mf.read_mesh(shared_tmp_path / "mesh.xdmf", COMM)
    assert size(back)[:2] == size(mesh)[:2]
    assert size(back)[2:] == pytest.approx(size(mesh)[2:], rel=1e-12)


@pytest.mark.parametrize("name", ["missing.msh", "cut.msh", "cut.xdmf", "lost.xdmf", "mesh.vtu"])
def test_bad_files_raise_on_every_rank(name: str, shared_tmp_path: Path) -> None:
    file = shared_tmp_path / name
    if name.endswith(".xdmf"):
        with XDMFFile(COMM, file, "w") as xdmf:
            xdmf.write_mesh(fem_mf.box(COMM, 1.0, 0.5))
    if COMM.rank == 0:
        data = file.with_suffix(".h5")
        if name == "cut.msh":
            text = (MESHES / "disk.msh").read_text()
            file.write_text(text[: len(text) // 3])
        elif name == "cut.xdmf":
            data.write_bytes(data.read_bytes()[:900])
        elif name == "lost.xdmf":
            data.unlink()
    COMM.barrier()
    with pytest.raises(ValueError, match=f"cannot read the mesh .*{name}: .") as caught:
        fem_mf.read_mesh(file, COMM)
    assert len(set(COMM.allgather(str(caught.value)))) == 1


def test_a_bad_number_raises_on_every_rank() -> None:
    with pytest.raises(ValueError, match="h must be positive"):
        fem_mf.disk(COMM, 1.0, math.nan)
