"""Cases: what a file describes is what runs; mistakes are named; sweeps do what is missing only."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf import __main__ as command
from fem_mf.case import Case, formula, read_settings, read_values, sweep
from tests.rows import rows

ROOT = Path(__file__).resolve().parents[1]
COMM = MPI.COMM_WORLD

TRAP = """
[mesh]
kind = "interval"
radius = 5.0
h = 0.5

[problem]
sigma = 0.5

[[functional]]
term = "potential"
g = "0.5 * x[0]**2"

[start]
m = "exp(-2 * (x[0] - 0.5)**2)"

[flow]
kind = "schrodinger"
dt = 0.1
t_end = 0.3

[output]
folder = "trap"
"""
MINIMISE = TRAP.partition("[start]")[0] + '[minimise]\ntol = 1e-9\n[output]\nfolder = "least"\n'


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demos").symlink_to(ROOT / "demos")
    (tmp_path / "meshes").symlink_to(ROOT / "meshes")
    Path("trap.toml").write_text(TRAP)
    Path("least.toml").write_text(MINIMISE)


def trap(**settings: Any) -> Case:
    return Case(tomllib.loads(TRAP), {key.replace("__", "."): v for key, v in settings.items()})


def fails(capsys: pytest.CaptureFixture[str], *words: str, code: int = 1) -> str:
    """The message of a command that fails, without a traceback."""
    assert command.main(words) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err and not out
    return err


# -- what a case stands for -----------------------------------------------------------------------


def test_a_case_is_the_script_that_it_replaces() -> None:
    problem = mf.Problem(mf.interval(COMM, 5.0, 0.5), mf.Potential(lambda x: 0.5 * x[0] ** 2), 0.5)
    start = mf.Density.from_function(problem, lambda x: np.exp(-2 * (x[0] - 0.5) ** 2))
    *_, state = mf.SchrodingerFlow(problem, 0.1).run(start, 0.3)
    result = trap().run(COMM)
    assert result == pytest.approx(state.scalars(), rel=0, abs=0, nan_ok=True)
    results = mf.open_results("trap")
    assert results.run["status"] == "finished"
    assert results.run["parameters"] == trap().tables
    assert len(results.times) == 4

    best = mf.minimise(problem, tol=1e-9)
    assert Case.read("least.toml").run(COMM)["energy"] == best.energy


@rows(
    ("mesh", "cell", "dim"),
    [
        ({"kind": "interval", "radius": 3.0, "h": 0.5, "grading": 2.0}, "interval", 1),
        ({"kind": "disk", "radius": 3.0, "h": 1.5}, "triangle", 2),
        ({"kind": "ball", "radius": 3.0, "h": 2.0, "cell": "hexahedron"}, "hexahedron", 3),
        ({"kind": "box", "radius": [3.0, 2.0], "h": 1.0, "dim": 2}, "triangle", 2),
        ({"file": "meshes/disk.msh"}, "triangle", 2),
    ],
)
def test_meshes(mesh: dict[str, Any], cell: str, dim: int) -> None:
    made = Case({**tomllib.loads(TRAP), "mesh": mesh}).mesh(COMM)
    assert (made.topology.cell_name(), made.geometry.dim) == (cell, dim)


def test_walls_of_a_mesh_from_a_file() -> None:
    mesh = {"file": "meshes/perforated_disk.msh"}
    tables = {**tomllib.loads(TRAP), "mesh": mesh, "problem": {"sigma": 0.5, "boundary": [2]}}
    case = Case(tables)
    assert case.problem(case.mesh(COMM)).boundary == "dirichlet on [2]"


@rows(
    ("flow", "problem", "kind"),
    [
        ({"kind": "schrodinger", "scheme": "sdirk2"}, {}, "SchrodingerFlow"),
        ({"kind": "hjb", "form": "v+w"}, {"degree": 2}, "HJBFlow"),
        (
            {"kind": "langevin", "petsc_options": {"pc_type": "lu"}},
            {"degree": 1, "mass": "lumped"},
            "LangevinFlow",
        ),
        ({"kind": "relative-entropy-descent", "max_iterations": 50}, {}, "RelativeEntropyDescent"),
    ],
)
def test_flows_run_and_restart(flow: dict[str, Any], problem: dict[str, Any], kind: str) -> None:
    tables = tomllib.loads(TRAP)
    tables |= {"flow": {"dt": 0.1, "t_end": 0.2, **flow}, "start": {"u": "2 * x[0]**2"}}
    tables["problem"] |= problem
    tables["output"] = {"folder": kind, "every": 0}
    case = Case(tables)
    assert case.run(COMM)["t"] == 0.2
    result = Case(tables, {"t_end": 0.4}).run(COMM, restart=True)
    assert (result["t"], mf.open_results(kind).run["flow"]["class"]) == (0.4, kind)
    assert Case(tables, {"t_end": 0.4}).run(COMM, overwrite=True)["energy"] == pytest.approx(
        result["energy"], rel=1e-8
    )


def quartic(factor_of_x: float) -> mf.Functional:
    return mf.Potential(lambda x: (factor_of_x * x[0]) ** 4)


def test_functionals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "my_terms", sys.modules[__name__])
    Path("data.csv").write_text("z,y\n-1.0,0.5\n1.0,1.0\n0.0,0.25\n")
    Path("plane.csv").write_text("-1.0,1.0,-1\n1.0,0.5,1\n")

    def tanh(x: Any, z: Any) -> Any:
        return np.tanh(x[0] * z)

    table: list[tuple[dict[str, Any], mf.Functional]] = [
        ({"term": "potential", "g": "abs(x[0]) + pi"}, mf.Potential(lambda x: abs(x[0]) + np.pi)),
        ({"term": "potential", "g": 2}, mf.Potential(lambda x: 2.0 + 0.0 * x[0])),
        ({"term": "mean-interaction", "strength": 2}, mf.MeanInteraction(2.0)),
        (
            {"term": "mean-interaction", "strength": 2.0, "target": [1.5]},
            mf.MeanInteraction(2.0, [1.5]),
        ),
        ({"term": "contact", "beta": 3.0, "factor": 0.5}, 0.5 * mf.Contact(3.0)),
        (
            {"term": "network", "data": "data.csv", "neuron": "tanh(x[0] * z)"},
            mf.NetworkLoss([-1.0, 1.0, 0.0], [0.5, 1.0, 0.25], tanh),
        ),
        (
            {
                "term": "network",
                "data": "plane.csv",
                "neuron": "x[0] * z[0] - z[1]",
                "loss": "logistic",
            },
            mf.NetworkLoss(
                [[-1.0, 1.0], [1.0, 0.5]],
                [-1, 1],
                lambda x, z: x[0] * z[0] - z[1],
                loss="logistic",
            ),
        ),
        ({"term": "my_terms:quartic", "factor_of_x": 2.0}, quartic(2.0)),
    ]
    tables = tomllib.loads(TRAP)
    problem = trap().problem(trap().mesh(COMM))
    m = mf.Density.from_function(problem, lambda x: np.exp(-((x[0] - 0.5) ** 2)))
    total = 0.0
    for entry, same in table:
        value = Case({**tables, "functional": entry}).functional(COMM).value(m)
        assert value == same.value(m), entry
        total += value
    every = Case({**tables, "functional": [entry for entry, _ in table]}).functional(COMM)
    assert every.value(m) == pytest.approx(total, rel=1e-14)


@rows(
    ("text", "expected"),
    [
        ("x[0]**2 + x[1]", [1.0, 6.0]),
        ("where(x[0] > 1.5, maximum(x[1], 3), exp(0))", [1.0, 3.0]),
        ("2", [2.0, 2.0]),
        ("-pi if 1 else 0", [-np.pi, -np.pi]),
    ],
)
def test_formulas(text: str, expected: list[float]) -> None:
    x = np.array([[1.0, 2.0], [0.0, 2.0], [0.0, 0.0]])
    assert formula(text, "x")(x) == pytest.approx(expected)


@rows(
    ("text", "message"),
    [
        ("x[0] +", "is not an expression"),
        ("x = 1", "is not an expression"),
        ("x[0] + y", "uses 'y', which is neither x nor a function of NumPy"),
        ("sum(x**2)", "uses 'sum'"),  # over the points of a rank
        ("max(x[0], 1)", "uses 'max'"),
        ("x.sum()", "uses .sum: call functions without a dot"),
        ("[i for i in x]", "uses 'i'"),
        ("open('x')", "uses 'open'"),
        ("x[0][3]", "components are x[0], x[1] and x[2]"),
        ("x[:, 0]", "components are"),
        ("x[0] @ x[0]", "product @"),
        ("matmul(x[0], x[0])", "uses 'matmul'"),
    ],
)
def test_bad_formulas(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="the formula") as error:
        formula(text, "x")
    assert message in str(error.value)


# -- settings -------------------------------------------------------------------------------------


def test_words_of_the_command_line_are_toml_or_text() -> None:
    words = ["sigma=0.5", "degree=2", "h = 1e-1", "g=x[0]**2", "b=true", "r=[1.0, 2]", "f=a=b"]
    assert read_settings([*words, "s='2'"]) == {
        **{"sigma": 0.5, "degree": 2, "h": 0.1, "g": "x[0]**2", "b": True, "r": [1.0, 2]},
        **{"f": "a=b", "s": "2"},
    }
    assert read_values("sigma=1,0.5") == ("sigma", [1, 0.5])
    assert read_values("scheme=backward-euler, sdirk2") == ("scheme", ["backward-euler", "sdirk2"])
    assert read_values("radius=[1,2],[3,4]") == ("radius", [[1, 2], [3, 4]])
    for bad in ("sigma", "sigma=", "sigma=1,,2", "sigma=1,1"):
        with pytest.raises(ValueError, match=bad):
            read_values(bad)


def test_settings_find_their_place() -> None:
    case = trap(sigma=0.2, flow__dt=0.2, g="x[0]**4", form="v+w", flow__kind="hjb", folder="other")
    tables = case.tables
    assert (tables["problem"]["sigma"], tables["flow"]["dt"]) == (0.2, 0.2)
    assert (tables["flow"]["kind"], tables["flow"]["form"]) == ("hjb", "v+w")
    assert tables["functional"][0]["g"] == "x[0]**4"
    assert case.folder == Path("other")
    assert tomllib.loads(TRAP)["problem"]["sigma"] == 0.5

    two = {**tomllib.loads(TRAP)}
    two["functional"] = [*two["functional"], {"term": "contact", "beta": 1.0}]
    assert Case(two, {"contact.factor": 2.0}).tables["functional"][1]["factor"] == 2.0
    with pytest.raises(ValueError, match=r"meanings: potential\.factor or contact\.factor"):
        Case(two, {"factor": 2.0})
    with pytest.raises(ValueError, match=r"meanings: mesh\.kind or flow\.kind"):
        trap(kind="hjb")


# -- mistakes -------------------------------------------------------------------------------------


@rows(
    ("old", "new", "message"),
    [
        ("[mesh]", "[mehs]", "unknown table 'mehs'; did you mean 'mesh'?"),
        ("[problem]\nsigma = 0.5", "", "the case has no table [problem]"),
        ("[flow]", "[minimise]\n[flow]", "either a table [flow] or a table [minimise]"),
        ("[problem]", "sigma =\n[problem]", "is not a TOML file"),
        ("[mesh]\n", "", "unknown table 'kind'; choose one of mesh, problem, functional"),
        ("[mesh]", "start = 'exp(x[0])'\n[mesh]", "is not a TOML file"),
        ("[output]", "[[output]]", "output is a table, [output], not"),
        ("radius", "radios", "unknown key 'radios' in [mesh]; did you mean 'radius'?"),
        (
            '"interval"',
            '"intervall"',
            "unknown mesh.kind 'intervall'; did you mean 'interval'?",
        ),
        ('kind = "interval"', "", "[mesh] needs a key kind: interval, disk, ball, box"),
        ("h = 0.5", "", "[mesh]: missing a required argument: 'h'"),
        ("h = 0.5", 'file = "meshes/disk.msh"', "either a key file or a kind"),
        ("h = 0.5", "h = '0.5'", "h must be a number, not '0.5'"),
        ("sigma", "sgima", "unknown key 'sgima' in [problem]; did you mean 'sigma'?"),
        ("sigma = 0.5", "sigma = -1", "sigma must be a positive number, not -1"),
        ("sigma = 0.5", "sigma = 'a'", "sigma must be a number, not 'a'"),
        ('"potential"', '"potentail"', "unknown functional.term 'potentail'; did you mean"),
        ('term = "potential"', "", "[functional] needs a key term: potential, mean-interaction"),
        ("g = ", "f = ", "unknown key 'f' in [potential]; choose one of term, factor, g"),
        (
            '"0.5 * x[0]**2"',
            '"0.5 * x[0"',
            "the formula '0.5 * x[0' is not an expression",
        ),
        ('"0.5 * x[0]**2"', '"x[7]"', "the potential g, term number 0 failed: IndexError"),
        ('"potential"', '"no_such:thing"', "cannot be imported: No module named 'no_such'"),
        ('"potential"', '"math:sqrtt"', "cannot be imported: module 'math' has no attribute"),
        ("g = ", "factor = 'a'\ng = ", "factor must be a number, not 'a'"),
        ('m = "exp', 'u = "1"\nm = "exp', "[start] has either a key m or a key u"),
        ("exp(-2", "-exp(-2", "the density m is negative"),
        ('"schrodinger"', '"schroedinger"', "did you mean 'schrodinger'?"),
        ("dt = 0.1", "dtt = 0.1", "unknown key 'dtt' in [flow]; did you mean 'dt'?"),
        ("dt = 0.1", "dt = 0", "dt must be a positive number, not 0"),
        ("dt = 0.1", "", "[flow]: missing a required argument: 'dt'"),
        ("t_end = 0.3", "", "[flow]: missing a required argument: 't_end'"),
        ("t_end = 0.3", "t_end = 'a'", "t_end must be a number"),
        ('"schrodinger"', '"langevin"', "LangevinFlow needs Problem(..., degree=1, mass='lumped')"),
        ("folder", "foldre", "unknown key 'foldre' in [output]; did you mean 'folder'?"),
        ("t_end = 0.3", "t_end = 1\nsteady_residual = 'a'", "steady_residual must be a number"),
        ("sigma = 0.5", "sigma = 0.5\nfunctional = 1", "unknown key 'functional' in [problem]"),
        ('folder = "trap"', "folder = 3", "output.folder must be a text"),
        ("folder", "every = -1\nfolder", "every is a number of steps"),
    ],
)
def test_mistakes_in_a_case(
    old: str, new: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert old in TRAP
    Path("bad.toml").write_text(TRAP.replace(old, new, 1))
    assert message in fails(capsys, "run", "bad.toml")
    assert not Path("trap").exists() or "every" in message


def test_mistakes_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in fails(capsys, "run", "no.toml")
    assert "did you mean 'sigma'?" in fails(capsys, "run", "trap.toml", "--set", "sigm=1")
    assert "not of the form key=value" in fails(capsys, "run", "trap.toml", "--set", "sigma")
    assert "-pc_type" in fails(capsys, "run", "trap.toml", "-pc_type", "lu", code=2)
    assert "unrecognized arguments: b" in fails(capsys, "run", "trap.toml", "b", code=2)
    assert "--sett" in fails(capsys, "run", "trap.toml", "--sett", "a=1", code=2)
    assert "doctor has no solvers" in fails(capsys, "doctor", "-fem_mf_x", code=2)
    assert "invalid choice: 'rnu'" in fails(capsys, "rnu", code=2)
    message = fails(capsys, "sweep", "trap.toml", "--over", "problem.sigam=1")
    assert "did you mean 'problem.sigma'?" in message
    assert not Path("trap").exists()


def test_results_are_not_replaced_unasked(capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "run", "trap.toml", "--restart")
    assert "checkpoint" in message
    assert command.main(["run", "trap.toml"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["folder", "t", "step", "energy", "eigenvalue", "residual"]
    assert table[1].split()[:3] == ["trap", "0.3", "3"]
    before = Path("trap/history.csv").read_text()
    message = fails(capsys, "run", "trap.toml", "--set", "dt=0.05")
    assert "--overwrite" in message and "--restart" in message
    assert Path("trap/history.csv").read_text() == before
    assert command.main(["run", "trap.toml", "--overwrite"]) == 0
    assert command.main(["run", "trap.toml", "--restart", "--set", "t_end=0.5"]) == 0
    assert mf.open_results("trap").run["result"]["t"] == 0.5
    capsys.readouterr()
    message = fails(capsys, "run", "least.toml", "--restart")
    assert "a minimisation has no checkpoint" in message


def test_options_of_petsc(capsys: pytest.CaptureFixture[str], database: Any) -> None:
    words = ["run", "trap.toml", "-fem_mf_schrodinger_pc_type", "lu"]
    assert command.main(words) == 0
    record = mf.open_results("trap").run
    assert record["petsc_options"]["fem_mf_schrodinger_pc_type"] == "lu"


def test_help_shows_a_case_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["run", "--help"]) == 0
    shown = capsys.readouterr().out
    text = shown.partition("TOML file:\n")[2].partition("\nIn parallel")[0]
    case = Case(tomllib.loads(text), {"t_end": 0.1})
    assert case.run(COMM)["t"] == 0.1
    for words in (["--help"], ["doctor", "--help"], ["sweep", "--help"], ["plot", "--help"]):
        assert command.main(words) == 0
        assert "usage: python -m fem_mf" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["trap", "network"])
def test_the_example_cases_run(name: str) -> None:
    settings = {"flow.t_end": 0.1} if name == "trap" else {"tol": 1e-3, "mesh.h": 1.5}
    case = Case.read(f"demos/cases/{name}.toml", settings)
    assert np.isfinite(case.run(COMM)["energy"])


def test_the_page_shows_an_example_as_it_is() -> None:
    page = (ROOT / "docs/cases.md").read_text(encoding="utf-8")
    shown = page.partition("```toml\n")[2].partition("```")[0]
    assert tomllib.loads(shown) == tomllib.loads(Path("demos/cases/trap.toml").read_text())


# -- pictures and sweeps --------------------------------------------------------------------------


def test_plot_is_the_command_of_the_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    trap().run(COMM)
    assert command.main(["plot", "trap", "--no-film", "--output", "pictures"]) == 0
    files = capsys.readouterr().out.split()
    assert files and all(Path(file).is_file() for file in files)
    assert "error: " in fails(capsys, "plot", "nowhere")


def test_a_sweep_ends_with_a_table_and_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    values = ["1", "0.8", "0.6", "0.5", "0.4"]
    words = ["sweep", "least.toml", "--over", "sigma=" + ",".join(values)]
    assert command.main([*words, "--set", "tol=1e-8"]) == 0
    header, *table = (line.split() for line in capsys.readouterr().out.splitlines())
    assert header == ["sigma", "iterations", "energy", "eigenvalue", "residual", "gap"]
    assert [row[0] for row in table] == values
    with Path("least/sweep.csv").open() as file:
        written = list(csv.DictReader(file))
    for row, value in zip(written, values, strict=True):
        # ½x² has the minimum σ/√2 in one dimension.
        assert float(row["energy"]) == pytest.approx(float(value) / np.sqrt(2.0), rel=1e-3)
        record = json.loads(Path(f"least/sigma={value}/run.json").read_text())
        assert record["result"] == {k: float(row[k]) for k in record["result"]}  # every digit
    assert Path("least/sweep.png").stat().st_size > 5000

    # The same again takes no run; another case is refused until --overwrite; words may vary, too.
    assert command.main([*words, "--set", "tol=1e-8"]) == 0
    after = json.loads(Path("least/sigma=0.4/run.json").read_text())
    assert after == record
    capsys.readouterr()
    message = fails(capsys, *words, "--set", "tol=1e-7")
    assert "has the results of another case" in message and "--overwrite" in message
    assert command.main([*words, "--set", "tol=1e-7", "--overwrite"]) == 0
    again = json.loads(Path("least/sigma=0.4/run.json").read_text())
    assert again["parameters"]["minimise"]["tol"] == 1e-7
    over = "scheme=backward-euler,sdirk2"
    assert command.main(["sweep", "trap.toml", "--over", over]) == 0
    assert Path("trap/scheme=sdirk2/run.json").exists() and Path("trap/sweep.png").exists()


def test_a_sweep_without_matplotlib_has_its_table(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    sweep("least.toml", "sigma", [1.0, 0.5], COMM)
    assert "no picture of the sweep: pictures need matplotlib" in log.text
    assert len(Path("least/sweep.csv").read_text().splitlines()) == 3


def start_sweep(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fem_mf", "sweep", "trap.toml", *words],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True},
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_stopped_is_completed(how: signal.Signals) -> None:
    # The second run is long: it is stopped in the middle.
    words = ["--over", "dt=0.1,0.005,0.05", "--set", "t_end=2.0"]
    job = start_sweep(*words)
    second = Path("trap/dt=0.005/history.csv")
    deadline = time.monotonic() + 60
    while not (second.exists() and len(second.read_text().splitlines()) > 30):
        assert job.poll() is None and time.monotonic() < deadline, job.communicate()
        time.sleep(0.02)
    job.send_signal(how)
    _, err = job.communicate(timeout=60)
    first = Path("trap/dt=0.1/run.json").read_text()
    status = mf.open_results("trap/dt=0.005").run["status"]
    assert status == {signal.SIGKILL: "killed", signal.SIGTERM: "stopped"}[how]
    assert not Path("trap/sweep.csv").exists() and not Path("trap/dt=0.05").exists()
    if how == signal.SIGTERM:  # what it says, works
        assert f"python -m fem_mf sweep trap.toml {' '.join(words)} --restart" in err
        words.append("--restart")

    job = start_sweep(*words)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert [line.split()[0] for line in out.splitlines()] == ["dt", "0.1", "0.005", "0.05"]
    assert Path("trap/dt=0.1/run.json").read_text() == first
    for value in ("0.005", "0.05"):
        record = mf.open_results(f"trap/dt={value}").run
        assert (record["status"], record["result"]["t"]) == ("finished", 2.0)
    restarted = mf.open_results("trap/dt=0.005").run["restarted_at"]
    assert (restarted is not None) == (how == signal.SIGTERM)
    assert len(Path("trap/sweep.csv").read_text().splitlines()) == 4
