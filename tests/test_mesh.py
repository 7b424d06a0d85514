"""Meshes of simple shapes, meshes from files, truncation radius, refinement."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from pathlib import Path

from mpi4py import MPI

import basix
import dolfinx.mesh
import numpy as np
import numpy.typing as npt
import pytest
from dolfinx.io import XDMFFile
from dolfinx.mesh import Mesh

import fem_mf
from fem_mf.mpi import global_sum
from fem_mf.multiblock import ball_blocks
from tests.rows import rows

COMM = MPI.COMM_WORLD
MESHES = Path(__file__).resolve().parents[1] / "meshes"
Array = npt.NDArray[np.float64]


def jacobians(mesh: Mesh) -> tuple[Array, Array]:
    """Determinants at quadrature points of the owned cells, shape (cells, points), and weights."""
    kind, degree = mesh.basix_cell(), mesh.geometry.cmaps[0].degree
    points, weights = basix.make_quadrature(kind, 4)
    element = basix.create_element(
        basix.ElementFamily.P, kind, degree, basix.LagrangeVariant.equispaced
    )
    slopes = element.tabulate(1, points)[1:, :, :, 0]
    owned = mesh.topology.index_map(mesh.topology.dim).size_local
    x = mesh.geometry.x[mesh.geometry.dofmaps[0][:owned], : mesh.geometry.dim]
    return np.linalg.det(np.einsum("aqn,cnb->cqab", slopes, x)), weights


def volume(mesh: Mesh) -> float:
    values, weights = jacobians(mesh)
    return float(global_sum(COMM, np.sum(np.abs(values) @ weights)))


def edge_lengths(mesh: Mesh) -> tuple[Array, Array]:
    """Length of the edges and distance of their midpoints from 0."""
    mesh.topology.create_entities(1)
    mesh.topology.create_connectivity(1, mesh.topology.dim)
    edges = np.arange(mesh.topology.index_map(1).size_local, dtype=np.int32)
    middle = dolfinx.mesh.compute_midpoints(mesh, 1, edges)
    return mesh.h(1, edges), np.linalg.norm(middle, axis=1)


def boundary_points(mesh: Mesh) -> Array:
    tdim = mesh.topology.dim
    mesh.topology.create_connectivity(tdim - 1, tdim)
    mesh.topology.create_connectivity(tdim - 1, 0)
    facets = dolfinx.mesh.exterior_facet_indices(mesh.topology)
    nodes = dolfinx.mesh.entities_to_geometry(mesh, tdim - 1, facets)
    return mesh.geometry.x[np.unique(nodes), : mesh.geometry.dim]


def scaled_jacobian(points: Array, cells: npt.NDArray[np.int64]) -> Array:
    """Smallest determinant of the unit edge vectors over the vertices of each block cell."""
    dim, corners = points.shape[1], points[cells]
    smallest = np.full(len(cells), np.inf)
    for vertex in range(2**dim):
        edges = [
            (corners[:, vertex ^ (1 << axis)] - corners[:, vertex]) * (1 - 2 * (vertex >> axis & 1))
            for axis in range(dim)
        ]
        units = [edge / np.linalg.norm(edge, axis=1, keepdims=True) for edge in edges]
        smallest = np.minimum(smallest, np.linalg.det(np.stack(units, axis=1)))
    return smallest


def make_round(cell: str, radius: float, h: float, grading: float = 1.0) -> Mesh:
    make = fem_mf.disk if cell in ("triangle", "quadrilateral") else fem_mf.ball
    return make(COMM, radius, h, cell, grading)


ROUND = ["triangle", "quadrilateral", "tetrahedron", "hexahedron"]
EVERY = ["interval", *ROUND]
COARSE = {"tetrahedron": 1.0, "hexahedron": 1.0}


# --- shapes ---------------------------------------------------------------------------------


@rows("grading", [1.0, 3.0])
@rows("cell", EVERY)
def test_box_is_filled_exactly(cell: str, grading: float) -> None:
    mesh = fem_mf.box(COMM, 3.0, 1.0, cell=cell, grading=grading)
    tdim = mesh.topology.dim
    assert (mesh.topology.cell_name(), mesh.geometry.dim) == (cell, tdim)
    assert volume(mesh) == pytest.approx(6.0**tdim, rel=1e-13)
    assert np.all(np.max(np.abs(boundary_points(mesh)), axis=1) == pytest.approx(3.0, rel=1e-14))


def test_box_takes_one_radius_per_axis() -> None:
    mesh = fem_mf.box(COMM, (1.0, 2.0), 0.5)
    assert mesh.topology.cell_name() == "triangle"
    assert np.max(mesh.geometry.x, axis=0) == pytest.approx([1.0, 2.0, 0.0])
    assert fem_mf.box(COMM, (1.0, 1.0, 2.0), 1.0).topology.cell_name() == "tetrahedron"
    assert fem_mf.box(COMM, 1.0, 1.0, dim=3).topology.cell_name() == "tetrahedron"
    assert fem_mf.box(COMM, (1.0, 1.0, 2.0), 1.0, cell="hexahedron").geometry.dim == 3


def test_interval_has_as_many_cells_as_the_size_asks_for() -> None:
    # 12 / 0.15 is a little more than 80 in floating point.
    mesh = fem_mf.interval(COMM, 6.0, 0.15)
    assert mesh.topology.index_map(1).size_global == 80


@rows("cell", ROUND)
def test_round_domains_converge_at_second_order(cell: str) -> None:
    coarse, fine = (1.2, 0.6) if cell in COARSE else (0.6, 0.15)
    dim = 3 if cell in COARSE else 2
    exact = math.pi * 9.0 if dim == 2 else 4.0 / 3.0 * math.pi * 27.0
    errors = [1.0 - volume(make_round(cell, 3.0, h)) / exact for h in (coarse, fine)]
    assert 0.0 < errors[1] < errors[0]
    # A polygon with edges e misses e^2 / 6 of the disk of radius 1; blocks vary more in size.
    assert errors[1] < (fine / 3.0) ** 2 / (2.0 if dim == 2 else 1.2)
    assert math.log(errors[0] / errors[1]) / math.log(coarse / fine) == pytest.approx(2.0, abs=0.4)


@rows("grading", [1.0, 2.5])
@rows("cell", ROUND)
def test_round_boundary_and_orientation(cell: str, grading: float) -> None:
    mesh = make_round(cell, 3.0, COARSE.get(cell, 0.4), grading)
    on_sphere = np.linalg.norm(boundary_points(mesh), axis=1)
    assert on_sphere == pytest.approx(3.0, rel=1e-12)
    assert np.all(jacobians(mesh)[0] > 0.0)


@rows("shape", ["box", "round"])
@rows("cell", ROUND)
def test_edges_have_the_length_asked_for(cell: str, shape: str) -> None:
    h = COARSE.get(cell, 0.3)
    make: dict[str, Callable[[], Mesh]] = {
        "box": lambda: fem_mf.box(COMM, 3.0, h, cell=cell),
        "round": lambda: make_round(cell, 3.0, h),
    }
    lengths, _ = edge_lengths(make[shape]())
    assert lengths.mean() == pytest.approx(h, rel=0.15)
    assert 0.45 * h < lengths.min() and lengths.max() < 2.0 * h


@rows("cell", ["triangle", "quadrilateral", "hexahedron"])
def test_grading_sets_the_size_from_centre_to_rim(cell: str) -> None:
    h, grading = (0.25, 2.5) if cell in COARSE else (0.1, 4.0)
    lengths, distance = edge_lengths(make_round(cell, 3.0, h, grading))
    # Across the circles the size is h (1 + (grading - 1) rho), along them the slope is half of it.
    expected = h * (1.0 + 0.75 * (grading - 1.0) * distance / 3.0)
    for ring in (distance < 0.5, (distance > 1.0) & (distance < 2.0), distance > 2.5):
        assert (lengths[ring] / expected[ring]).mean() == pytest.approx(1.0, abs=0.2)


def test_grading_of_an_interval() -> None:
    lengths, distance = edge_lengths(fem_mf.interval(COMM, 4.0, 0.05, grading=5.0))
    # The derivative of the map is linear in rho; 8 / 0.15 cells are rounded up to 54.
    expected = 0.05 * (1.0 + 4.0 * rho_of(distance)) * (8 / 0.15 / 54)
    assert lengths == pytest.approx(expected, rel=0.01)


def rho_of(midpoints: Array) -> Array:
    """Undo x = 4 rho (1 + 2 rho) / 3."""
    return (np.sqrt(1.0 + 6.0 * midpoints) - 1.0) / 4.0


@pytest.mark.parametrize(("dim", "least"), [(2, 0.8), (3, 0.7)])
def test_blocks_are_well_shaped_and_share_their_nodes(dim: int, least: float) -> None:
    for h in (0.45, 0.3, 0.15):
        raw = ball_blocks(dim, 1.0, h)
        assert scaled_jacobian(raw.points, raw.cells).min() > least
        distance = np.linalg.norm(raw.points[:, None] - raw.points[None], axis=2)
        assert distance[np.triu_indices(len(raw.points), 1)].min() > 0.3 * h
        assert np.array_equal(np.unique(raw.cells), np.arange(len(raw.points)))


@rows(
    "wrong",
    [
        lambda: fem_mf.disk(COMM, 1.0, 0.0),
        lambda: fem_mf.disk(COMM, 1.0, -0.1),
        lambda: fem_mf.disk(COMM, 1.0, math.nan),
        lambda: fem_mf.disk(COMM, 1.0, math.inf),
        lambda: fem_mf.disk(COMM, 1.0, 2.1),
        lambda: fem_mf.disk(COMM, 0.0, 0.1),
        lambda: fem_mf.disk(COMM, math.nan, 0.1),
        lambda: fem_mf.disk(COMM, [1.0, 1.0], 0.1),  # type: ignore[arg-type]
        lambda: fem_mf.disk(COMM, 1.0, 0.1, cell="tetrahedron"),
        lambda: fem_mf.disk(COMM, 1.0, 0.1, cell="square"),
        lambda: fem_mf.disk(COMM, 1.0, 0.1, grading=0.0),
        lambda: fem_mf.disk(COMM, 1.0, 0.5, grading=10.0),
        lambda: fem_mf.ball(COMM, 1.0, 0.5, cell="triangle"),
        lambda: fem_mf.interval(COMM, -1.0, 0.1),
        lambda: fem_mf.box(COMM, 1.0, 0.1, dim=4),
        lambda: fem_mf.box(COMM, 1.0, 0.1, dim=2, cell="hexahedron"),
        lambda: fem_mf.box(COMM, 1.0, 0.1, dim=3, cell="triangle"),
        lambda: fem_mf.box(COMM, (1.0, 1.0), 0.1, dim=3),
        lambda: fem_mf.box(COMM, (1.0, 1.0), 0.1, cell="tetrahedron"),
        lambda: fem_mf.box(COMM, (1.0, 0.01), 0.1),
        lambda: fem_mf.box(COMM, (), 0.1),
    ],
)
def test_bad_shapes_are_refused(wrong: Callable[[], Mesh]) -> None:
    with pytest.raises(ValueError, match=r"radius|\bh\b|grading|dim|cell"):
        wrong()


def test_missing_gmsh_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"libGLU.so.1: cannot open shared object file ({name})")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match=r"libGLU.*pip install gmsh.*libglu1-mesa"):
        fem_mf.disk(COMM, 1.0, 0.5)


def test_a_gmsh_session_of_the_user_survives() -> None:
    gmsh = pytest.importorskip("gmsh")
    gmsh.initialize(interruptible=False)
    try:
        gmsh.model.add("mine")
        gmsh.option.setNumber("Mesh.MeshSizeMax", 7.0)
        fem_mf.disk(COMM, 1.0, 0.5)
        assert gmsh.model.getCurrent() == "mine"
        assert gmsh.option.getNumber("Mesh.MeshSizeMax") == 7.0
    finally:
        gmsh.finalize()
    fem_mf.disk(COMM, 1.0, 0.5)
    assert not gmsh.isInitialized()


# --- files ----------------------------------------------------------------------------------


@rows(
    ("name", "cell", "exact"),
    [
        ("disk", "triangle", 36.0 * math.pi),
        ("ball", "tetrahedron", 288.0 * math.pi),
        ("perforated_disk", "triangle", (16.0 - 5 * 0.36) * math.pi),
    ],
)
def test_committed_meshes(name: str, cell: str, exact: float) -> None:
    mesh = fem_mf.read_mesh(MESHES / f"{name}.msh", COMM)
    assert (mesh.topology.cell_name(), mesh.geometry.dim) == (cell, mesh.topology.dim)
    assert volume(mesh) == pytest.approx(exact, rel=0.03)
    assert (MESHES / f"{name}.msh").stat().st_size < 200_000


@pytest.mark.parametrize("cell", EVERY)
def test_xdmf_round_trip(cell: str, tmp_path: Path) -> None:
    mesh = fem_mf.box(COMM, 1.0, 0.5, cell=cell, grading=2.0)
    mesh.name = "omega"
    with XDMFFile(COMM, tmp_path / "mesh.xdmf", "w") as file:
        file.write_mesh(mesh)
    back = fem_mf.read_mesh(str(tmp_path / "mesh.xdmf"), COMM)
    assert (back.topology.cell_name(), back.geometry.dim) == (cell, mesh.geometry.dim)
    for dim in (0, mesh.topology.dim):
        assert back.topology.index_map(dim).size_global == mesh.topology.index_map(dim).size_global
    assert volume(back) == pytest.approx(volume(mesh), rel=1e-14)
    assert np.all(np.sign(jacobians(back)[0]) == np.sign(jacobians(mesh)[0].flat[0]))


def write_with_gmsh(
    path: Path, version: float, binary: bool, groups: bool, degree: int = 1, dim: int = 2
) -> Path:
    gmsh = pytest.importorskip("gmsh")
    gmsh.initialize(interruptible=False)
    try:
        gmsh.option.setNumber("General.Terminal", 0)
        gmsh.option.setNumber("Mesh.MshFileVersion", version)
        gmsh.option.setNumber("Mesh.Binary", binary)
        gmsh.option.setNumber("Mesh.MeshSizeMax", 0.5)
        if dim == 2:
            # The centre of the arcs becomes a node that belongs to no cell.
            points = [gmsh.model.geo.addPoint(*p, 0) for p in ((0, 0), (1, 0), (-1, 0))]
            arcs = [
                gmsh.model.geo.addCircleArc(points[i], points[0], points[3 - i]) for i in (1, 2)
            ]
            gmsh.model.geo.addPlaneSurface([gmsh.model.geo.addCurveLoop(arcs)])
            gmsh.model.geo.synchronize()
            if groups:
                gmsh.model.addPhysicalGroup(1, arcs, name="rim")
                gmsh.model.addPhysicalGroup(2, [1], name="inside")
        else:
            gmsh.model.occ.addSphere(0, 0, 0, 1)
            gmsh.model.occ.synchronize()
        gmsh.model.mesh.generate(2)
        gmsh.model.mesh.setOrder(degree)
        gmsh.write(str(path))
    finally:
        gmsh.finalize()
    return path


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(
    ("version", "binary"), [(1, False), (2.2, False), (2.2, True), (4, False), (4.1, True)]
)
def test_every_version_of_msh(version: float, binary: bool, groups: bool, tmp_path: Path) -> None:
    mesh = fem_mf.read_mesh(write_with_gmsh(tmp_path / "x.msh", version, binary, groups), COMM)
    assert mesh.geometry.dim == 2
    assert volume(mesh) == pytest.approx(math.pi, rel=0.1)


def test_curved_cells_are_read_as_such(tmp_path: Path) -> None:
    file = write_with_gmsh(tmp_path / "x.msh", 4.1, False, False, degree=2)
    mesh = fem_mf.read_mesh(file, COMM)
    assert mesh.geometry.cmaps[0].degree == 2
    assert volume(mesh) == pytest.approx(math.pi, rel=2e-3)
    with pytest.raises(ValueError, match="curved"):
        fem_mf.refine(mesh)


def test_a_surface_in_space_is_refused(tmp_path: Path) -> None:
    file = write_with_gmsh(tmp_path / "x.msh", 4.1, False, False, dim=3)
    with pytest.raises(ValueError, match=r"x\.msh.*gmsh -3"):
        fem_mf.read_mesh(file, COMM)


def msh2(*elements: str) -> str:
    nodes = ["1 0 0 0", "2 1 0 0", "3 1 1 0", "4 0 1 0", "5 2 0 0"]
    lines = ["$MeshFormat", "2.2 0 8", "$EndMeshFormat", "$Nodes", "5", *nodes, "$EndNodes"]
    lines += ["$Elements", str(len(elements)), *elements, "$EndElements", ""]
    return "\n".join(lines)


def test_a_cell_in_two_groups_counts_once(tmp_path: Path) -> None:
    file = tmp_path / "groups.msh"
    file.write_text(msh2("1 2 2 1 1 1 2 3", "2 2 2 1 1 1 3 4", "3 2 2 2 1 1 2 3"))
    mesh = fem_mf.read_mesh(file, COMM)
    assert mesh.topology.index_map(2).size_global == 2
    assert volume(mesh) == pytest.approx(1.0)


def damaged(name: str, folder: Path) -> Path:
    """Make one kind of bad file."""
    file, good = folder / name, (MESHES / "disk.msh").read_text()
    if name == "cut.msh":
        file.write_text(good[: len(good) // 2])
    elif name == "nan.msh":
        file.write_text(good.replace("\n6 0 0\n", "\nnan 0 0\n", 1))
    elif name == "empty.msh":
        file.write_text("")
    elif name == "script.msh":
        file.write_text("Point(1) = {0, 0, 0};\n")
    elif name == "header.msh":
        file.write_text("$MeshFormat\n4.1 0 8\n$EndMeshFormat\n")
    elif name == "quads_too.msh":
        file.write_text(msh2("1 3 2 0 1 1 2 3 4", "2 2 2 0 1 2 5 3"))
    elif name == "overlap.msh":
        file.write_text(msh2("1 2 2 0 1 1 2 3", "2 2 2 0 1 1 2 4", "3 2 2 0 1 1 2 5"))
    elif name == "degenerate.msh":
        file.write_text(msh2("1 2 2 0 1 1 2 3", "2 2 2 0 1 1 3 3"))
    elif name == "folder.msh":
        file.mkdir()
    elif name in ("mesh.vtu", "no_suffix"):
        file.write_text(good)
    elif name == "junk.xdmf":
        file.write_text("not XML")
    elif name == "grids.xdmf":
        file.write_text("<Xdmf><Domain/></Xdmf>")
    elif name.startswith("h5_"):
        with XDMFFile(COMM, file, "w") as xdmf:
            xdmf.write_mesh(fem_mf.box(COMM, 1.0, 0.5))
        data = file.with_suffix(".h5")
        if name == "h5_missing.xdmf":
            data.unlink()
        elif name == "h5_cut.xdmf":
            data.write_bytes(data.read_bytes()[:900])
        else:
            file.write_text(file.read_text().replace("/topology<", "/other<"))
    return file


BAD = ["missing.msh", "missing.xdmf", "cut.msh", "nan.msh", "empty.msh", "script.msh", "header.msh"]
BAD += ["quads_too.msh", "overlap.msh", "degenerate.msh"]
BAD += ["folder.msh", "mesh.vtu", "no_suffix", "junk.xdmf", "grids.xdmf"]
BAD += ["h5_missing.xdmf", "h5_cut.xdmf", "h5_name.xdmf"]


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"cannot read the mesh .*{name}: ."):
        fem_mf.read_mesh(damaged(name, tmp_path), COMM)


# --- radius and refinement ------------------------------------------------------------------


@rows("tol", [1e-3, 1e-10, 1e-30])
def test_truncation_radius_against_the_tails_in_closed_form(tol: float) -> None:
    kappa, sigma = 0.2, 0.5
    theta = math.sqrt(2 * kappa) / sigma
    one, two, three = (fem_mf.truncation_radius(kappa, sigma, tol, dim) for dim in (1, 2, 3))
    assert math.erfc(one * math.sqrt(theta / 2)) == pytest.approx(tol, rel=1e-8)
    assert math.exp(-theta * two**2 / 2) == pytest.approx(tol, rel=1e-10)
    r = three * math.sqrt(theta)
    tail = math.erfc(r / math.sqrt(2)) + math.sqrt(2 / math.pi) * r * math.exp(-(r**2) / 2)
    assert tail == pytest.approx(tol, rel=1e-8)
    assert fem_mf.truncation_radius(kappa, sigma, tol, 2, offset=1.5) == two + 1.5


@rows(
    "wrong",
    [
        {"kappa": 0.0},
        {"kappa": math.nan},
        {"sigma": -1.0},
        {"tol": 0.0},
        {"tol": 1.0},
        {"dim": 0},
        {"offset": -1.0},
    ],
)
def test_truncation_radius_refuses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="not"):
        fem_mf.truncation_radius(**({"kappa": 1.0, "sigma": 1.0} | wrong))  # type: ignore[arg-type]


@rows("grading", [0.5, 1.0, 3.0])
def test_vertices_of_a_graded_interval(grading: float) -> None:
    # x = R s(1 + b|s|)/(1 + b) of a uniform s: its slope grows by 1 + 2b = grading from 0 to R
    b, radius = 0.5 * (grading - 1.0), 3.0
    x = np.sort(fem_mf.interval(COMM, radius, 0.4, grading=grading).geometry.x[:, 0])
    s = np.linspace(-1.0, 1.0, len(x))
    np.testing.assert_allclose(x, radius * s * (1 + b * np.abs(s)) / (1 + b), rtol=0, atol=1e-12)


@rows("cell", ["interval", "triangle", "tetrahedron"])
def test_refine_halves_the_edges(cell: str) -> None:
    mesh = fem_mf.box(COMM, 1.0, 0.5, cell=cell)
    fine = fem_mf.refine(mesh)
    tdim = mesh.topology.dim
    cells = [m.topology.index_map(tdim).size_global for m in (mesh, fine)]
    assert cells[1] == 2**tdim * cells[0]
    assert volume(fine) == pytest.approx(volume(mesh), rel=1e-13)
    assert edge_lengths(fine)[0].mean() / edge_lengths(mesh)[0].mean() == pytest.approx(
        0.5, abs=0.06
    )


@pytest.mark.parametrize("cell", ["quadrilateral", "hexahedron"])
def test_refine_refuses_blocks(cell: str) -> None:
    with pytest.raises(ValueError, match="rebuild the mesh with h/2"):
        fem_mf.refine(fem_mf.box(COMM, 1.0, 1.0, cell=cell))
