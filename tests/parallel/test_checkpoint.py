"""Checkpoints written on some ranks and read on others: the same state, and the same run after it.

Rank 0 takes part in both, so it compares. A job of n ranks tests the pairs that no smaller job can.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from mpi4py import MPI

import basix.ufl
import numpy as np
import pytest
import ufl
from dolfinx import fem, mesh

import fem_mf as mf
from tests.exact import gaussian

COMM = MPI.COMM_WORLD
# On fewer ranks than were there before, and on more; on as many where there is but one.
PAIRS = [(1, 1)] if COMM.size == 1 else [(COMM.size, COMM.size - 1), (COMM.size - 1, COMM.size)]
# What tells of the way to the solution, not of the solution.
COUNTERS = ("fixed_point_iterations", "linear_iterations", "contraction", "newton_iterations")
Z = np.linspace(-1.5, 1.5, 6)

each_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]} to {pair[1]}")


def curved(comm: MPI.Intracomm) -> mesh.Mesh:
    """Triangles of degree 2, bent."""
    flat = mesh.create_rectangle(comm, [(-3.0, -3.0), (3.0, 3.0)], (4, 4))
    bent = fem.functionspace(flat, ("Lagrange", 2, (2,)))
    imap, x = bent.dofmap.index_map, bent.tabulate_dof_coordinates()[:, :2]
    x = x * (1.0 + 0.02 * np.sum(x**2, axis=1, keepdims=True))
    num_cells = flat.topology.index_map(2).size_local
    cells = bent.dofmap.list[:num_cells]
    numbers = imap.local_to_global(cells.ravel().astype(np.int32)).reshape(cells.shape)
    element = basix.ufl.element("Lagrange", "triangle", 2, shape=(2,))
    return mesh.create_mesh(comm, numbers, ufl.Mesh(element), x[: imap.size_local])


def quadrilaterals(comm: MPI.Intracomm) -> mesh.Mesh:
    return mf.disk(comm, 4.0, 1.5, cell="quadrilateral")


CASES: dict[str, tuple[Callable[[MPI.Intracomm], mesh.Mesh], dict[str, Any]]] = {
    "triangles 1": (lambda c: mf.disk(c, 4.0, 1.2), {"degree": 1, "mass": "lumped"}),
    "triangles 2": (lambda c: mf.disk(c, 4.0, 1.2), {"degree": 2}),
    "triangles 4": (lambda c: mf.disk(c, 4.0, 1.5), {"degree": 4}),
    "quadrilaterals 1": (quadrilaterals, {"degree": 1, "mass": "lumped"}),
    "quadrilaterals 2": (quadrilaterals, {"degree": 2}),
    "quadrilaterals 4": (quadrilaterals, {"degree": 4, "mass": "lumped"}),
    "interval 4": (lambda c: mf.interval(c, 4.0, 0.5), {"degree": 4, "mass": "lumped"}),
    "tetrahedra 3": (lambda c: mf.ball(c, 3.0, 1.6), {"degree": 3}),
    "hexahedra 3": (lambda c: mf.box(c, 3.0, 2.0, dim=3, cell="hexahedron"), {"degree": 3}),
    "curved triangles 3": (curved, {"degree": 3}),
    "walls": (lambda c: mf.box(c, 3.0, 1.5), {"degree": 2, "boundary": "dirichlet"}),
}


def network() -> mf.Functional:
    trap = mf.Potential(lambda x: 0.3 * np.sum(x**2, axis=0) + 0.1 * np.sin(x[0]))
    return trap + mf.NetworkLoss(Z, np.cos(2 * Z), lambda x, z: np.tanh(x[0] * z + x[1]))


def on_ranks(size: int, work: Callable[[MPI.Intracomm], Any]) -> Any:
    """Let the first ranks work; what comes out on this one, None on idle ones. Collective."""
    group = COMM.Split(int(COMM.rank < size))
    result = work(group) if COMM.rank < size else None
    COMM.barrier()
    return result


def nodal(function: fem.Function) -> Any:
    """Positions and values of all nodes in the order of their positions, on rank 0. Collective."""
    space = function.function_space
    owned = space.dofmap.index_map.size_local
    x = np.round(space.tabulate_dof_coordinates()[:owned], 9) + 0.0
    parts = space.mesh.comm.gather(np.column_stack([x, function.x.array[:owned]]))
    if parts is None:
        return None
    rows = np.concatenate(parts)
    return rows[np.lexsort(rows[:, :3].T)]


def rough(x: Any) -> Any:
    return 0.1 + np.abs(np.sin(37.0 * x[0] + 91.0 * x[1] + 11.0 * x[2]))


def a_state(density: mf.Density, **more: Any) -> dict[str, Any]:
    names = (f.name for f in fields(mf.flows.State) if f.name != "density")
    numbers = {name: 1.0 / (3.0 + i) for i, name in enumerate(names)}
    return {"density": density, **numbers, "step": 7, "rejected": 2, **more}


def agree(here: Any, there: Any) -> None:
    """Compare on rank 0 and fail on all ranks alike. Collective."""
    message = None
    if COMM.rank == 0:
        try:
            np.testing.assert_equal(here, there)
        except AssertionError as error:
            message = str(error)
    message = COMM.bcast(message)
    assert message is None, message


# Three ranks, of which one may be between two others, add little to two: one mesh of each kind.
STATES = (
    list(CASES)
    if COMM.size < 3
    else ["triangles 1", "quadrilaterals 4", "tetrahedra 3", "curved triangles 3"]
)


@each_pair
@pytest.mark.parametrize("name", STATES)
def test_a_state_comes_back(name: str, pair: tuple[int, int], shared_tmp_path: Path) -> None:
    make, options = CASES[name]
    path = shared_tmp_path / "checkpoint"

    def write(comm: MPI.Intracomm) -> Any:
        problem = mf.Problem(make(comm), network(), 0.6, **options)
        state = mf.flows.State(**a_state(mf.Density.from_function(problem, rough)))
        with mf.Checkpoint(path, problem) as checkpoint:
            assert checkpoint.write(state, force=True, extra={"pi": np.pi})
        return nodal(state.density.psi), state.scalars()

    def read(comm: MPI.Intracomm) -> Any:
        saved = mf.Checkpoint.read(path, comm)
        problem = mf.Problem(saved.mesh, network(), 0.6, **options)
        state = saved.state(problem)
        assert (saved.t, saved.step, saved.extra) == (state.t, state.step, {"pi": np.pi})
        return nodal(state.density.psi), state.scalars()

    # Bit for bit: values are copied, not computed.
    agree(on_ranks(pair[0], write), on_ranks(pair[1], read))


@each_pair
def test_functions_of_a_state_come_back(pair: tuple[int, int], shared_tmp_path: Path) -> None:
    path = shared_tmp_path / "checkpoint"
    start = gaussian([0.5, -0.2], 1.4)

    def write(comm: MPI.Intracomm) -> Any:
        problem = mf.Problem(mf.box(comm, 4.0, 1.3), network(), 0.6, degree=3)
        density = mf.LogDensity.from_function(problem, lambda x: -np.log(start(x)))
        (state,) = mf.HJBFlow(problem, 0.1, decomposed=True).run(density, 0.0)
        with mf.Checkpoint(path, problem) as checkpoint:
            checkpoint.write(state, force=True)
        return [nodal(f) for f in (state.u, state.v, state.w)], state.scalars()

    def read(comm: MPI.Intracomm) -> Any:
        saved = mf.Checkpoint.read(path, comm)
        problem = mf.Problem(saved.mesh, network(), 0.6, degree=3)
        state = saved.state(problem)
        assert isinstance(state, mf.flows.HJBState) and isinstance(state.density, mf.LogDensity)
        return [nodal(f) for f in (state.u, state.v, state.w)], state.scalars()

    agree(on_ranks(pair[0], write), on_ranks(pair[1], read))


TIGHT = {"fixed_point_tolerance": 1e-12}


def schrodinger(problem: mf.Problem) -> Any:
    return mf.SchrodingerFlow(problem, 0.05, "sdirk2", petsc_options={"ksp_rtol": 1e-13}, **TIGHT)


def adaptive(problem: mf.Problem) -> Any:
    return mf.SchrodingerFlow(
        problem, 0.02, "sdirk2", tolerance=1e-3, petsc_options={"ksp_rtol": 1e-13}, **TIGHT
    )


def hjb(**options: Any) -> Callable[[mf.Problem], Any]:
    return lambda problem: mf.HJBFlow(problem, 0.05, "sdirk2", **options, **TIGHT)


def descent(problem: mf.Problem) -> Any:
    return mf.RelativeEntropyDescent(problem, 0.05, **TIGHT)


def langevin(problem: mf.Problem) -> Any:
    return mf.LangevinFlow(problem, 0.05, petsc_options={"ksp_rtol": 1e-13}, **TIGHT)


def bent() -> mf.Functional:
    """A trap for which v is not known in closed form."""
    return mf.Potential(lambda x: 0.05 * np.sum(x**4, axis=0)) + network()


def square(comm: MPI.Intracomm) -> mesh.Mesh:
    return mf.box(comm, 4.0, 1.0)


RUNS: dict[str, tuple[Any, Callable[[], mf.Functional], Any, dict[str, Any]]] = {
    **{
        f"Schrödinger, {name}": (CASES[name][0], network, schrodinger, CASES[name][1])
        for name in list(CASES)[:6]
    },
    "adaptive": (square, network, adaptive, {"degree": 2}),
    "HJB": (square, network, hjb(), {"degree": 2}),
    "HJB decomposed": (square, network, hjb(decomposed=True), {"degree": 2}),
    "HJB, v computed": (square, bent, hjb(decomposed=True), {"degree": 2}),
    "HJB weighted": (square, network, hjb(decomposed=True, weighted=True), {"degree": 3}),
    "relative entropy": (square, network, descent, {"degree": 2}),
    "Langevin": (square, network, langevin, {"degree": 1, "mass": "lumped"}),
}


T_END = 0.25
# The flows on one and two ranks; more ranks share cores, where direct solvers are slow.
FLOWS = list(RUNS) if COMM.size < 3 else ["Schrödinger, triangles 2", "adaptive"]
GO_ON = [(name, pair) for name in FLOWS for pair in PAIRS]
_WHOLE: dict[tuple[str, int], Any] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(COMM.bcast(str(tmp_path_factory.mktemp("runs"))))


@pytest.mark.parametrize(("name", "pair"), GO_ON, ids=lambda value: str(value))
def test_a_run_goes_on_as_if_nothing_had_happened(
    name: str, pair: tuple[int, int], folder: Path
) -> None:
    make, functional, flow, options = RUNS[name]
    path = folder / f"{name} {pair[0]}"

    def whole(comm: MPI.Intracomm) -> Any:
        problem = mf.Problem(make(comm), functional(), 0.7, **options)
        start = gaussian([0.5, -0.2], 1.4)
        density = mf.LogDensity.from_function(problem, lambda x: -np.log(start(x)))
        if not name.startswith(("HJB", "relative")):
            density = mf.Density(problem, density.amplitude())
        states = []
        with mf.Checkpoint(path, problem, every=3) as checkpoint:
            for state in flow(problem).run(density, T_END):
                if 0 < state.step <= 3:
                    checkpoint.write(state)
                states.append(state.scalars())
        return states

    def rest(comm: MPI.Intracomm) -> Any:
        saved = mf.Checkpoint.read(path, comm)
        problem = mf.Problem(saved.mesh, functional(), 0.7, **options)
        return [state.scalars() for state in flow(problem).run(saved.state(problem), T_END)]

    if (name, pair[0]) not in _WHOLE:
        _WHOLE[name, pair[0]] = on_ranks(pair[0], whole)
    all_states, later = _WHOLE[name, pair[0]], on_ranks(pair[1], rest)
    message = None
    if COMM.rank == 0:
        message = difference(all_states[3:], later)
    message = COMM.bcast(message)
    assert message is None, message


def difference(expected: list[dict[str, float]], found: list[dict[str, float]]) -> str | None:
    """The first number that is not the same to 1e-10, in words."""
    if len(expected) != len(found):
        return f"{len(found)} states instead of {len(expected)}"
    for one, other in zip(expected, found, strict=True):
        for key in one:
            close = np.isclose(other[key], one[key], rtol=1e-10, atol=1e-10, equal_nan=True)
            if key not in COUNTERS and not close:
                return f"step {one['step']}: {key} is {other[key]!r} instead of {one[key]!r}"
    return None


def test_a_state_of_this_run_is_a_start_too() -> None:
    problem = mf.Problem(square(COMM), network(), 0.7, degree=2)
    start = mf.Density.from_function(problem, gaussian([0.5, -0.2], 1.4))
    flow = adaptive(problem)
    states = list(flow.run(start, 0.4))
    again = list(flow.run(states[3], 0.4))
    assert again[0] is states[3]
    assert difference([s.scalars() for s in states[3:]], [s.scalars() for s in again]) is None
    longer = list(flow.run(states[-1], 0.5))
    assert longer[-1].t == 0.5 and longer[1].step == states[-1].step + 1
    with pytest.raises(ValueError, match="before the start"):
        flow.run(states[-1], 0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_warning_to_any_rank_stops_all(shared_tmp_path: Path, number: signal.Signals) -> None:
    problem = mf.Problem(square(COMM), network(), 0.7, degree=1, mass="lumped")
    start = mf.Density.from_function(problem, gaussian([0.5, -0.2], 1.4))
    before = signal.getsignal(number)
    steps = []
    with (
        pytest.raises(SystemExit) as stop,
        mf.Checkpoint(shared_tmp_path / "checkpoint", problem) as checkpoint,
    ):
        for state in schrodinger(problem).run(start, 1.0):
            steps.append(state.step)
            if state.step == 2 and COMM.rank == COMM.size - 1:
                os.kill(os.getpid(), number)
            assert not checkpoint.write(state)
    assert stop.value.code == (130 if number == signal.SIGINT else 0)
    assert steps == [0, 1, 2]
    assert signal.getsignal(number) is before
    assert mf.Checkpoint.read(shared_tmp_path / "checkpoint", COMM).step == 2


def test_a_disk_that_refuses_is_an_error_on_every_rank(shared_tmp_path: Path) -> None:
    problem = mf.Problem(square(COMM), network(), 0.7, degree=1, mass="lumped")
    if COMM.rank == 0:
        (shared_tmp_path / "file").write_text("")
    COMM.barrier()
    with pytest.raises(OSError, match="cannot write"):
        mf.Checkpoint(shared_tmp_path / "file" / "checkpoint", problem)


def test_there_is_no_checkpoint(shared_tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no manifest\.json"):
        mf.Checkpoint.read(shared_tmp_path, COMM)
