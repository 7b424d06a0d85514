"""What a run has yielded stays valid when a later step fails, in every flow."""

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from tests.exact import gaussian

COMM = MPI.COMM_WORLD


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


FLOWS = {
    "backward Euler": (mf.SchrodingerFlow, {}, {"degree": 2}),
    "SDIRK2": (mf.SchrodingerFlow, {"scheme": "sdirk2"}, {"degree": 2}),
    "adaptive": (mf.SchrodingerFlow, {"tolerance": 1e-2}, {"degree": 2}),
    "HJB": (mf.HJBFlow, {}, {"degree": 2}),
    "decomposed": (mf.HJBFlow, {"decomposed": True}, {"degree": 2}),
    "Hopf-Cole": (mf.HJBFlow, {"decomposed": True, "weighted": True}, {"degree": 2}),
    "relative entropy": (mf.RelativeEntropyDescent, {}, {"degree": 2}),
    "Langevin": (mf.LangevinFlow, {}, {"degree": 1, "mass": "lumped"}),
}


@pytest.mark.parametrize("name", FLOWS)
def test_what_was_yielded_survives_a_failure(name):
    make, options, space = FLOWS[name]
    term = Breakable()
    functional = mf.Potential(lambda x: 0.5 * x[0] ** 2) + mf.MeanInteraction(0.0) + term
    problem = mf.Problem(mf.interval(COMM, 5.0, 0.2), functional, 0.7, **space)
    start = mf.Density.from_function(problem, gaussian(-0.5, 2.0))
    if make is not mf.SchrodingerFlow and make is not mf.LangevinFlow:
        start = mf.LogDensity.from_function(problem, lambda x: (x[0] + 0.5) ** 2)
    kept = []
    with pytest.raises((ValueError, mf.ConvergenceError), match="not finite"):
        for state in make(problem, 0.1, **options).run(start, 1.0):
            kept.append((state, state.density.amplitude(), state.density.mean(), state.energy))
            term.broken = state.step == 2
    term.broken = False
    assert [state.step for state, *_ in kept] == [0, 1, 2]
    for state, psi, mean, energy in kept:
        np.testing.assert_array_equal(state.density.amplitude(), psi)
        np.testing.assert_array_equal(state.density.mean(), mean)
        assert state.energy == energy
        if make is not mf.LangevinFlow:  # whose energy is another one
            assert mf.energy(problem, state.density) == pytest.approx(energy, rel=1e-12)
    assert len({float(mean[0]) for _, _, mean, _ in kept}) == 3
