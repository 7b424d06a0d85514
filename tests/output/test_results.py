"""Results read back: whole, damaged, of other versions, on every cell, and with pandas or without.

How results of running and killed programs are read is in ``test_run.py``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.output.results import Results
from tests.rows import rows

pyvista = pytest.importorskip("pyvista")
COMM = MPI.COMM_SELF

MESHES: dict[str, tuple[Callable[[], Any], dict[str, Any], float]] = {
    # mesh, options, what the mean may differ by: ψ is linear on cells cut by the degree
    "interval": (lambda: mf.interval(COMM, 6.0, 0.5), {"degree": 4}, 2e-3),
    "lumped interval": (
        lambda: mf.interval(COMM, 6.0, 0.25),
        {"degree": 1, "mass": "lumped"},
        1e-12,
    ),
    "consistent interval": (lambda: mf.interval(COMM, 6.0, 0.25), {"degree": 1}, 1e-12),
    "triangle": (lambda: mf.disk(COMM, 4.0, 1.0), {"degree": 2}, 1e-2),
    "quadrilateral": (
        lambda: mf.box(COMM, 4.0, 1.0, cell="quadrilateral"),
        {"degree": 3, "mass": "lumped"},
        1e-2,
    ),
    "walls": (lambda: mf.box(COMM, 4.0, 0.5), {"degree": 2, "boundary": "dirichlet"}, 1e-2),
    "tetrahedron": (lambda: mf.ball(COMM, 3.0, 1.5), {"degree": 2}, 3e-2),
    "hexahedron": (
        lambda: mf.box(COMM, 3.0, 1.5, dim=3, cell="hexahedron"),
        {"degree": 2, "mass": "lumped"},
        3e-2,
    ),
}


def write(folder: Path, name: str, **options: Any) -> list[mf.flows.State]:
    """A short run; its states."""
    domain, more, _ = MESHES[name]
    functional = mf.Potential(lambda x: np.sum(x**2, axis=0)) + mf.MeanInteraction(0.5, 0.3)
    problem = mf.Problem(domain(), functional, 0.7, **more)
    start = mf.Density.from_function(problem, lambda x: np.exp(-np.sum((x - 0.4) ** 2, axis=0)))
    with mf.Run(folder, problem, **options) as run:
        return list(run.steps(mf.SchrodingerFlow(problem, 0.1), start, 0.3))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[mf.flows.State]]:
    folder = tmp_path_factory.mktemp("results") / "run"
    return folder, write(folder, "interval", overwrite=True)


@pytest.fixture
def folder(recorded: tuple[Path, list[mf.flows.State]], tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    copy = tmp_path / "run"
    for path in recorded[0].rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(recorded[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return copy


def open_(folder: Path) -> Results:
    return mf.open_results(folder, COMM)


# -- whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MESHES)
def test_densities_and_fields(name: str, tmp_path: Path) -> None:
    states = write(tmp_path, name)
    results, near = open_(tmp_path), MESHES[name][2]
    assert results.times.tolist() == [s.t for s in states]
    for state in states:
        density = results.density(state.t)
        assert density.mass() == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_allclose(density.mean(), state.density.mean(), rtol=0, atol=near)
        corner = density.problem.discretisation.nodes[: density.problem.dim].T
        assert corner.max() == pytest.approx(np.abs(corner.min()))
    # At the end it is the function of the run, in its space.
    for last in (results.density(), results.density(states[-1].t)):
        assert last.problem.degree == states[-1].density.problem.degree
        np.testing.assert_allclose(last.mean(), states[-1].density.mean(), rtol=0, atol=1e-13)
        assert last.fisher_information() == pytest.approx(states[-1].density.fisher_information())
    # pyvista reads the same from the file itself.
    reader = pyvista.get_reader(tmp_path / "series.xdmf")
    for number, t in enumerate(results.times):
        reader.set_active_time_point(number)
        there, here = reader.read(), results.fields(t)
        assert set(here.point_data) == {"m", "psi", "u", "V"}
        for field in here.point_data:
            np.testing.assert_array_equal(here[field], there[field])
        np.testing.assert_array_equal(here.points, there.points)
        sizes = [grid.compute_cell_sizes() for grid in (here, there)]
        for kind in ("Length", "Area", "Volume"):
            one, other = (grid.cell_data[kind] for grid in sizes)
            np.testing.assert_allclose(one, other, atol=1e-12)
    np.testing.assert_array_equal(results.fields()["m"], here["m"])


def test_a_log_density(tmp_path: Path) -> None:
    problem = mf.Problem(
        mf.interval(COMM, 4.0, 0.5), mf.Potential(lambda x: x[0] ** 2), 0.8, degree=2
    )
    start = mf.Density.from_log(problem, lambda x: (x[0] - 0.4) ** 2)
    with mf.Run(tmp_path, problem) as run:
        states = list(run.steps(mf.HJBFlow(problem, 0.1), start, 0.2))
    results = open_(tmp_path)
    last = results.density()
    assert isinstance(last, mf.LogDensity)
    np.testing.assert_allclose(last.mean(), states[-1].density.mean(), atol=1e-12)
    np.testing.assert_allclose(results.density(0.1).mean(), states[1].density.mean(), atol=1e-2)


def test_history(
    recorded: tuple[Path, list[mf.flows.State]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, states = recorded
    expected = {name: [s.scalars()[name] for s in states] for name in states[0].scalars()}
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it were not installed
    table = open_(folder).history
    assert isinstance(table, np.ndarray) and table.dtype.names == tuple(expected)
    frames = ModuleType("pandas")
    frames.DataFrame = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", frames)
    frame = open_(folder).history
    assert isinstance(frame, dict) and list(frame) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name], values)
        np.testing.assert_array_equal(frame[name], values)
    assert table["step"].dtype == int


def test_history_without_a_step(folder: Path) -> None:
    path = folder / "history.csv"
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    path.write_text("\n".join(head) + "\n")
    assert len(open_(folder).history) == 0
    path.unlink()
    with pytest.raises(ValueError, match=r"has no history\.csv"):
        assert open_(folder).history


def test_the_last_density_is_the_latest(folder: Path) -> None:
    """That of the checkpoint, or of the series, whichever is later."""
    saved = mf.Checkpoint.read(folder / "checkpoint", COMM)
    assert open_(folder).density().problem.degree == 4
    path = folder / "series.xdmf"
    path.write_text(path.read_text().replace(f'<Time Value="{saved.t!r}"/>', '<Time Value="0.9"/>'))
    assert open_(folder).density().problem.degree == 1
    assert open_(folder).density(saved.t).problem.degree == 4
    path.unlink()
    assert len(open_(folder).times) == 0
    assert open_(folder).density().problem.degree == 4


def test_repr(recorded: tuple[Path, list[mf.flows.State]], tmp_path: Path) -> None:
    results = open_(recorded[0])
    assert repr(results) == f"Results('{recorded[0]}', finished)"
    for line in (
        f"{recorded[0]}: finished\n",
        "1 rank of",
        "F = Potential(...) + MeanInteraction(0.5, [0.3])",
        "SchrodingerFlow, d = 1, σ = 0.7, 97 dofs of degree 4",
        "history: 4 steps",
        "fields: 4 times up to t = 0.3",
    ):
        assert line in str(results)
    with mf.Run(tmp_path, comm=COMM):
        pass
    study = open_(tmp_path)
    assert str(study).startswith(f"{tmp_path}: finished\n") and len(study.times) == 0
    for ask in (study.density, study.fields, lambda: study.history):
        with pytest.raises(ValueError, match=r"'.*' (has no|is a study)"):
            ask()


def test_times_that_were_not_written(folder: Path) -> None:
    results = open_(folder)
    for ask in (results.density, results.fields):
        with pytest.raises(ValueError, match=r"no fields at t = 0\.26; the nearest time is 0\.3"):
            ask(0.26)
    assert results.fields(0.1 + 1e-12).n_points == results.fields(0.1).n_points


# -- damaged, or of something else -----------------------------------------------------------


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"is not the folder of a run.*run\.json"):
            open_(path)


@rows(
    ("damage", "message"),
    [
        (lambda text: text[:-30], "damaged"),
        (lambda text: "", "damaged"),
        (lambda text: "[]", "format is None"),
        (lambda text: "{}", "damaged: KeyError"),
        (lambda text: '{"format": "fem_mf run 1"}', "damaged: it has no status, reason"),
        (lambda text: text.replace("fem_mf run 1", "fem_mf run 9"), "format is 'fem_mf run 9'"),
        (lambda text: text.replace('"dofs"', '"dofs'), "damaged"),
    ],
)
def test_damaged_records(folder: Path, damage: Callable[[str], str], message: str) -> None:
    path = folder / "run.json"
    text = path.read_text()
    path.write_text(damage(text))
    with pytest.raises(ValueError, match=rf"run\.json' .*{message}"):
        open_(folder)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="damaged"):
        open_(folder)
    path.write_text(text)


def test_another_version(folder: Path, log: pytest.LogCaptureFixture) -> None:
    path = folder / "run.json"
    record = json.loads(path.read_text())
    record["versions"]["fem_mf"] = "0.0.1"
    path.write_text(json.dumps(record))
    results = open_(folder)
    assert len(results.history) == 4 and results.density().mass() == pytest.approx(1.0)
    (line,) = [r.getMessage() for r in log.records]
    assert re.search(r"warning: '.*run' was written by fem_mf 0\.0\.1; this is \d", line)


@rows(
    ("damage", "message"),
    [
        (lambda line: line.partition(",")[2], "does not have a number for each of its"),
        (lambda line: line + ",1.0", "does not have a number for each of its"),
        (lambda line: line.replace(".", "?", 1), "does not have a number for each of its"),
        (lambda line: "", "does not have a number for each of its"),
    ],
)
def test_damaged_histories(folder: Path, damage: Callable[[str], str], message: str) -> None:
    path = folder / "history.csv"
    text = path.read_text()
    *before, changed, last, end = text.split("\n")
    path.write_text("\n".join([*before, damage(changed), last, end]))
    results = open_(folder)
    with pytest.raises(ValueError, match=rf"history\.csv' is damaged: line \d+ {message}"):
        assert results.history
    assert "damaged: line" in str(results) and "fields: 4 times" in str(results)
    path.write_text(text[:-20])  # cut off: the lines before it are whole
    assert results.history["step"].tolist() == [0, 1, 2]
    path.write_bytes(text.encode()[:-40] + bytes(30) + b"\n")  # as after a power failure
    with pytest.raises(ValueError, match="damaged"):
        assert results.history
    path.write_text(text)


def test_damaged_series(folder: Path) -> None:
    results, values = open_(folder), folder / "series.bin"
    whole = values.read_bytes()
    values.write_bytes(whole[: len(whole) // 2])
    assert len(results.times) == 4
    for ask in (results.density, results.fields):
        assert ask(0.0) is not None  # before the cut
        with pytest.raises(ValueError, match=r"series\.bin' is damaged"):
            ask(results.times[2])
    assert results.density().mass() == pytest.approx(1.0)  # of the checkpoint
    values.unlink()
    with pytest.raises(ValueError, match=r"series\.bin' is damaged"):
        results.fields()
    text = (folder / "series.xdmf").read_text()
    changes = (text[:-40], "", text.replace("<Time", "<Clock"), text.replace('Value="0.1"', ""))
    for damaged in changes:
        (folder / "series.xdmf").write_text(damaged)
        for ask in (results.density, results.fields, lambda t: results.times):
            with pytest.raises(ValueError, match=r"series\.xdmf' is damaged"):
                ask(0.1)
        assert "series.xdmf' is damaged" in str(results) and "history: 4 steps" in str(results)


@rows("name", ["manifest.json", "*-psi.npy", "*-points.npy"])
def test_damaged_checkpoint(folder: Path, name: str, log: pytest.LogCaptureFixture) -> None:
    """The series has the last time as well."""
    (path,) = (folder / "checkpoint").glob(name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    log.clear()
    results = open_(folder)
    assert results.density().problem.degree == 1
    assert len(log.records) == 1 and "damaged" in log.text and "the series instead" in log.text
    path.write_bytes(whole)


# -- what objects say of themselves ----------------------------------------------------------


class Own:
    """A functional that is not of the family."""

    def value(self, density: Any) -> float:
        return 0.0

    def derivative(self, density: Any) -> Any:
        return density.problem.new_potential()

    def __repr__(self) -> str:
        return "Own()"


def double_well(x: Any) -> Any:
    return (x[0] ** 2 - 1) ** 2


@rows(
    ("functional", "expected"),
    [
        (mf.Potential(lambda x: x[0]), "Potential(...)"),
        (mf.Potential(double_well), "Potential(double_well)"),
        (
            mf.Potential(lambda x: x[0]) + 2 * mf.MeanInteraction(0.5, 0.3),
            "Potential(...) + 2 * MeanInteraction(0.5, [0.3])",
        ),
        (
            -1 * mf.Contact(0.1) + (-0.25) * mf.MeanInteraction(1, [0.0, 2.0]) + Own(),
            "- Contact(0.1) - 0.25 * MeanInteraction(1, [0, 2]) + Own()",
        ),
        (
            mf.NetworkLoss(np.arange(3.0), np.ones(3), lambda x, z: x[0] * z),
            "NetworkLoss(3 data, 'squared')",
        ),
        (
            mf.functionals.Cylindrical([double_well], lambda y: float(y[0]), np.ones_like),
            "Cylindrical(1 feature)",
        ),
        (mf.FormFunctional(lambda m, dx: m**3 * dx), "FormFunctional(...)"),
        (mf.functional(value=len, derivative=len), "functional(value=len)"),
    ],
)
def test_functionals(functional: mf.Functional, expected: str) -> None:
    assert repr(functional) == expected


def test_problem_density_state(recorded: tuple[Path, list[mf.flows.State]]) -> None:
    state = recorded[1][1]
    texts = {
        state.density.problem: "Problem(F = Potential(...) + MeanInteraction(0.5, [0.3]), σ = 0.7, "
        "24 cells (interval), degree 4, 97 dofs, consistent mass, natural)",
        state.density: "Density(d = 1, degree 4, 97 dofs)",
        state: f"State(t = 0.1, step 1, energy {state.energy:.12g}, residual {state.residual:.3g})",
    }
    for one, text in texts.items():
        assert repr(one) == str(one) == text
    best = mf.minimise(state.density.problem)
    assert repr(best) == f"Minimum(global minimum: {best})"
