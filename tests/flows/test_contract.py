"""What every flow promises, whatever its unknown and its scheme: one contract for all of them."""

from dataclasses import fields
from itertools import pairwise
from typing import Any, NamedTuple

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from fem_mf.flows.flow import HJBState
from fem_mf.flows.langevin import LangevinState

COMM = MPI.COMM_WORLD
SIGMA = 0.7
Z = np.linspace(-2.0, 2.0, 7)
SMOOTH = {"degree": 2}
VERTICES = {"degree": 1, "mass": "lumped"}
# How well eigenvalue and residual of a state are those of ψ: the other flows discretise u.
OF_PSI, OF_U = (1e-9, 1e-6), (1e-2, 0.1)


class Case(NamedTuple):
    """A flow: its class, the space it needs and its options; and what differs between flows."""

    kind: Any
    space: dict[str, Any] = SMOOTH
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    agreement: tuple[float, float] = OF_PSI
    prefix: str = "fem_mf_schrodinger_"


def hjb(form: str, scheme: str) -> Case:
    options = {"form": form, "scheme": scheme}
    return Case(mf.HJBFlow, SMOOTH, options, OF_U, "fem_mf_hjb_")


FLOWS = {
    "psi, backward Euler": Case(mf.SchrodingerFlow),
    "psi, Crank-Nicolson": Case(mf.SchrodingerFlow, SMOOTH, {"scheme": "crank-nicolson"}),
    "psi, SDIRK2": Case(mf.SchrodingerFlow, VERTICES, {"scheme": "sdirk2"}),
    "psi, adaptive": Case(mf.SchrodingerFlow, SMOOTH, {"scheme": "sdirk2", "tolerance": 0.1}),
    "u, backward Euler": hjb("u", "backward-euler"),
    "u, SDIRK2": hjb("u", "sdirk2"),
    "v + w, backward Euler": hjb("v+w", "backward-euler"),
    "v + w, SDIRK2": hjb("v+w", "sdirk2"),
    "Hopf-Cole, backward Euler": hjb("hopf-cole", "backward-euler"),
    "Hopf-Cole, SDIRK2": hjb("hopf-cole", "sdirk2"),
    "relative entropy": Case(mf.RelativeEntropyDescent, SMOOTH, {}, OF_U, "fem_mf_hjb_"),
    "Langevin": Case(mf.LangevinFlow, VERTICES, prefix="fem_mf_langevin_"),
}
each_flow = pytest.mark.parametrize("name", FLOWS)
_MADE: dict[Any, Any] = {}


class Breakable:
    """(1/2)|∫x dm − 1|² as a user would write it, whose derivative is NaN once it is broken."""

    broken = False

    def value(self, density):
        return 0.5 * float(density.mean()[0] - 1.0) ** 2

    def derivative(self, density):
        v = density.problem.new_potential()
        slope = np.nan if self.broken else density.mean()[0] - 1.0
        v.interpolate(lambda x: slope * x[0])
        return v


def functional(term=None):
    network = mf.NetworkLoss(Z, np.sin(2 * Z), lambda x, z: np.tanh(x[0] * z + 1.0))
    return mf.Potential(lambda x: 0.3 * x[0] ** 2) + (term or network)


def start_of(name, problem, precision=2.0):
    """An off-centre Gaussian, known as the flow has it."""
    log = mf.LogDensity.from_function(problem, lambda x: 0.5 * precision * (x[0] + 0.8) ** 2)
    return log if FLOWS[name].agreement == OF_U else mf.Density(problem, log.amplitude())


def made(name):
    """The problem of a flow and a start; problems are made once for each space."""
    space = FLOWS[name].space
    key = space["degree"]
    if key not in _MADE:
        _MADE[key] = mf.Problem(mf.interval(COMM, 5.0, 0.25), functional(), SIGMA, **space)
    return _MADE[key], start_of(name, _MADE[key])


def flow_of(name, problem, dt, **options):
    case = FLOWS[name]
    return case.kind(problem, dt, **case.options | options)


def amplitude(state):
    return state.density.amplitude()


# -- a run -------------------------------------------------------------------------------------


@each_flow
def test_time_begins_at_zero_and_ends_exactly(name):
    problem, start = made(name)
    for dt, t_end, steps in ((0.1, 0.5, 5), (0.15, 0.5, 4), (2.0, 0.5, 1), (0.05, 0.35, 7)):
        states = list(flow_of(name, problem, dt).run(start, t_end))
        assert (states[0].t, states[0].dt, states[0].step) == (0.0, 0.0, 0)
        assert states[-1].t == t_end
        times = [state.t for state in states]
        assert [state.step for state in states] == list(range(len(states)))
        np.testing.assert_allclose(np.cumsum([state.dt for state in states]), times, rtol=1e-12)
        if name != "psi, adaptive":
            np.testing.assert_allclose(times[:-1], dt * np.arange(steps), rtol=1e-14)
    (state,) = flow_of(name, problem, 0.1).run(start, 0.0)
    assert (state.t, state.dt, state.step) == (0.0, 0.0, 0)
    np.testing.assert_allclose(amplitude(state), start.amplitude(), rtol=1e-9, atol=1e-12)


@each_flow
def test_the_numbers_of_a_state_are_those_of_its_density(name):
    problem, start = made(name)
    case, energies = FLOWS[name], []
    for state in flow_of(name, problem, 0.1, fixed_point_tolerance=1e-12).run(start, 0.5):
        density = state.density
        assert state.mass == pytest.approx(1.0, abs=1e-12)
        assert density.mass() == pytest.approx(1.0, abs=1e-12)
        assert state.dissipation == pytest.approx(state.residual**2, rel=1e-12)
        boundary = mf.boundary_mass(problem, density)
        assert state.boundary_mass == pytest.approx(boundary, rel=1e-8, abs=1e-18)
        energies.append(state.energy)
        if name == "Langevin":  # whose energy is another; test_langevin.py has its numbers
            continue
        assert state.energy == pytest.approx(mf.energy(problem, density), rel=1e-10)
        for key, rel in zip(("eigenvalue", "residual"), case.agreement, strict=True):
            own = getattr(mf, key)(problem, density)
            assert getattr(state, key) == pytest.approx(own, rel=rel), key
    assert np.all(np.diff(energies) < 0)


@each_flow
def test_scalars_are_everything_but_functions(name, tmp_path):
    problem, start = made(name)
    states = list(flow_of(name, problem, 0.25).run(start, 0.5))
    functions = {"density", "u", "v", "w"}
    with mf.History(tmp_path / "history.csv", COMM) as history:
        for state in states:
            scalars = state.scalars()
            assert list(scalars) == [f.name for f in fields(state) if f.name not in functions]
            assert list(scalars)[:5] == ["t", "dt", "next_dt", "step", "energy"]
            assert all(isinstance(value, int | float) for value in scalars.values())
            np.testing.assert_equal({key: getattr(state, key) for key in scalars}, scalars)
            history.append(state)
    columns = mf.History.read(tmp_path / "history.csv")
    assert list(columns) == list(scalars)
    for key, column in columns.items():
        np.testing.assert_array_equal(column, [getattr(state, key) for state in states])
        assert (column.dtype.kind == "i") == isinstance(getattr(states[0], key), int)


@each_flow
def test_a_run_can_be_repeated_and_resumed(name):
    problem, start = made(name)
    before = start.amplitude()
    flow = flow_of(name, problem, 0.1, fixed_point_tolerance=1e-12)
    whole, copies = [], []
    for state in flow.run(start, 0.6):
        whole.append(state)
        copies.append(amplitude(state).copy())
    again = list(flow.run(start, 0.6))
    middle = whole[len(whole) // 2]
    rest = list(flow.run(middle, 0.6))
    np.testing.assert_allclose(amplitude(again[-1]), copies[-1], rtol=0, atol=1e-10)
    np.testing.assert_allclose(amplitude(rest[-1]), copies[-1], rtol=0, atol=1e-9)
    assert rest[0] is middle
    assert [(s.t, s.step) for s in rest] == [(s.t, s.step) for s in whole[middle.step :]]
    for old, new in zip(whole[middle.step + 1 :], rest[1:], strict=True):
        assert new.energy == pytest.approx(old.energy, rel=1e-10)
        assert new.residual == pytest.approx(old.residual, rel=1e-6)
    if name != "psi, adaptive" and not name.startswith(("v + w", "Hopf-Cole")):
        # From the density alone; v would begin elsewhere, and an adaptive flow at its first step.
        *_, last = flow.run(middle.density, 0.6 - middle.t)
        np.testing.assert_allclose(amplitude(last), copies[-1], rtol=0, atol=1e-9)
    # Each state owns its density, and none of this has changed the start.
    for state, copy in zip(whole, copies, strict=True):
        np.testing.assert_array_equal(amplitude(state), copy)
    assert min(np.abs(a - b).max() for a, b in pairwise(copies)) > 1e-3
    assert len({id(state.density) for state in whole}) == len(whole)
    np.testing.assert_array_equal(start.amplitude(), before)


@each_flow
def test_runs_of_one_flow_are_independent(name):
    problem, start = made(name)
    flow = flow_of(name, problem, 0.1, fixed_point_tolerance=1e-12)
    narrow = start_of(name, problem, 4.0)
    alone = [state.energy for state in flow.run(start, 0.3)]
    other = flow.run(narrow, 0.3)
    interleaved = [(next(other).energy, state.energy) for state in flow.run(start, 0.3)]
    assert [energy for _, energy in interleaved] == pytest.approx(alone, rel=1e-10)
    apart = flow_of(name, problem, 0.1, fixed_point_tolerance=1e-12).run(narrow, 0.3)
    expected = [state.energy for state, _ in zip(apart, alone, strict=False)]
    assert [energy for energy, _ in interleaved][: len(expected)] == pytest.approx(
        expected, rel=1e-10
    )


@each_flow
def test_a_run_stops_at_a_steady_state(name):
    problem, start = made(name)
    dt = 1.0 if name == "Hopf-Cole, SDIRK2" else 5.0
    options = {} if name != "psi, adaptive" else {"tolerance": 1e-2}
    flow = flow_of(name, problem, dt, **options)
    states = list(flow.run(start, 1e6, steady_residual=1e-5))
    assert states[-1].residual <= 1e-5 < states[-2].residual
    assert states[-1].t < 1e6
    if not name.startswith("Hopf-Cole"):  # which takes its first residual from the operator of u
        (only,) = flow.run(states[-1].density, 1e6, steady_residual=1e-4)
        assert only.t == 0.0
    (only,) = flow.run(states[-1], 1e6, steady_residual=1e-4)
    assert only is states[-1]


# -- bad input ---------------------------------------------------------------------------------


@each_flow
def test_bad_arguments_are_refused_at_the_call(name):
    problem, start = made(name)
    for dt in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=f"dt must be a positive number, not {dt}"):
            flow_of(name, problem, dt)
    for options, text in (
        ({"fixed_point_tolerance": 2.0}, "fixed_point_tolerance must lie between 0 and 1"),
        ({"max_iterations": 0}, "max_iterations must be at least 1"),
    ):
        with pytest.raises(ValueError, match=text):
            flow_of(name, problem, 0.1, **options)
    with pytest.raises(TypeError, match="no_such_option"):
        flow_of(name, problem, 0.1, no_such_option=1)
    with pytest.raises(TypeError, match="problem must be a Problem"):
        flow_of(name, "problem", 0.1)
    if FLOWS[name].kind in (mf.SchrodingerFlow, mf.HJBFlow):
        with pytest.raises(ValueError, match=r"unknown scheme 'euler'; choose one of .*sdirk2"):
            flow_of(name, problem, 0.1, scheme="euler")
    flow = flow_of(name, problem, 0.1)
    for t_end in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="t_end must be a non-negative number"):
            flow.run(start, t_end)
    with pytest.raises(TypeError, match="start must be a Density"):
        flow.run(3.0, 1.0)
    other = mf.Problem(problem.mesh, functional(), SIGMA, **FLOWS[name].space)
    with pytest.raises(ValueError, match="the start belongs to another problem"):
        flow.run(start_of(name, other), 1.0)
    *_, later = flow.run(start, 0.2)
    with pytest.raises(ValueError, match=r"before the start, at t = 0\.2"):
        flow.run(later, 0.1)


def test_states_of_other_flows_are_refused():
    """Their energy is another: a state goes on only in a flow of its kind."""
    flows = {
        name: flow_of(name, made(name)[0], 0.1)
        for name in ("psi, backward Euler", "psi, SDIRK2", "u, SDIRK2", "Langevin")
    }
    states = {name: list(flow.run(made(name)[1], 0.1))[-1] for name, flow in flows.items()}
    families = {mf.flows.State, HJBState, LangevinState}
    assert {type(state) for state in states.values()} == families
    for flow in flows.values():
        for name, state in states.items():
            if type(state) is flow._kind and state.density.problem is flow.problem:
                assert [s.t for s in flow.run(state, 0.2)] == pytest.approx([0.1, 0.2])
            elif type(state) is not flow._kind:
                wrong = rf"not from a {type(state).__name__} of another flow"
                with pytest.raises(TypeError, match=wrong):
                    flow.run(state, 0.2)
            else:
                with pytest.raises(ValueError, match="another problem"):
                    flow.run(states[name], 0.2)


@each_flow
def test_bad_solver_options_are_errors_and_leave_nothing_behind(name, database):
    problem, start = made(name)
    before = database.getAll()
    for chosen, text in (
        ({"pc_tipe": "lu"}, r"does not know the options \['pc_tipe'\]"),
        ({"pc_type": "hypre"}, "PETSc rejected the solver options .*hypre"),
    ):
        with pytest.raises(ValueError, match=text):
            list(flow_of(name, problem, 0.1, petsc_options=chosen).run(start, 0.1))
        assert database.getAll() == before
    database[FLOWS[name].prefix + "pc_type"] = "hypre"  # the command line
    with pytest.raises(ValueError, match="rejected"):
        list(flow_of(name, problem, 0.1).run(start, 0.1))
    database.delValue(FLOWS[name].prefix + "pc_type")
    list(flow_of(name, problem, 0.1).run(start, 0.1))  # and the next flow works


# -- failures ----------------------------------------------------------------------------------


@each_flow
def test_what_was_yielded_survives_a_failure(name):
    case = FLOWS[name]
    term = Breakable()
    problem = mf.Problem(mf.interval(COMM, 5.0, 0.25), functional(term), SIGMA, **case.space)
    kept = []
    with pytest.raises((ValueError, mf.ConvergenceError), match="not finite"):
        for state in flow_of(name, problem, 0.1).run(start_of(name, problem), 1.0):
            kept.append((state, amplitude(state), state.density.mean(), state.energy))
            term.broken = state.step == 2
    term.broken = False
    assert [state.step for state, *_ in kept] == [0, 1, 2]
    for state, psi, mean, energy in kept:
        np.testing.assert_array_equal(amplitude(state), psi)
        np.testing.assert_array_equal(state.density.mean(), mean)
        assert state.energy == energy
        if case.kind is not mf.LangevinFlow:  # whose energy is another one
            assert mf.energy(problem, state.density) == pytest.approx(energy, rel=1e-12)
    assert len({float(mean[0]) for _, _, mean, _ in kept}) == 3


@each_flow
def test_a_potential_that_is_not_finite_is_refused(name):
    bad = mf.Potential(lambda x: np.where(x[0] > 4.0, np.nan, x[0] ** 2))
    problem = mf.Problem(mf.interval(COMM, 5.0, 0.25), bad, SIGMA, **FLOWS[name].space)
    with pytest.raises(ValueError, match=r"the potential g, .* is not finite at x = "):
        list(flow_of(name, problem, 0.1).run(start_of(name, problem), 0.1))


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "psi, adaptive"])
def test_a_step_that_fails_is_an_error_and_the_start_stays(name):
    problem, start = made(name)
    options = {"accelerator": mf.mean_field.Picard(), "max_iterations": 1, "safeguard": False}
    states = []
    with pytest.raises(mf.ConvergenceError, match="did not converge"):
        for state in flow_of(name, problem, 1.0, **options).run(start, 3.0):
            states.append(state)
    (state,) = states
    assert state.t == 0.0
    np.testing.assert_allclose(amplitude(state), start.amplitude(), rtol=1e-9, atol=1e-12)
