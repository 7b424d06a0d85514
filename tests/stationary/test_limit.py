"""The limit of the energy of a run, on disk, and its rate of decay."""

from __future__ import annotations

from pathlib import Path

from mpi4py import MPI

import numpy as np
import pytest

import fem_mf as mf
from tests.exact import gaussian
from tests.rows import rows

COMM = MPI.COMM_WORLD
T = np.linspace(0.0, 12.0, 121)


def test_the_rate_of_one_mode() -> None:
    decay = mf.measure_decay(T, 0.3 + 0.1 * np.exp(-0.7 * T), mf.Limit(0.3, 1e-12))
    assert decay.rate == pytest.approx(0.7, rel=1e-6)
    assert decay.extrapolated == pytest.approx(0.7, rel=1e-3)
    assert decay.window == pytest.approx((10.0, 12.0))
    assert decay.settled
    assert str(decay).startswith("F^σ − min F^σ falls like e^(−0.7000 t) for 10 ≤ t ≤ 12")
    assert "not asymptotic" not in str(decay)


@rows(("t_end", "settled"), [(4.0, False), (12.0, False), (60.0, True)])
def test_a_second_mode_must_have_died_out(t_end: float, settled: bool) -> None:
    t = np.linspace(0.0, t_end, 301)
    decay = mf.measure_decay(t, np.exp(-0.4 * t) + 3.0 * np.exp(-0.5 * t), mf.Limit(0.0))
    assert decay.settled == settled
    assert ("not asymptotic" in str(decay)) != settled
    assert decay.rate > 0.4
    if settled:
        assert decay.rate == pytest.approx(0.4, rel=0.02)
        assert decay.extrapolated == pytest.approx(0.4, rel=0.005)


def test_energies_within_the_uncertainty_do_not_count() -> None:
    noisy = 0.3 + np.exp(-2.0 * T) + 1e-9 * np.sin(50.0 * T)
    decay = mf.measure_decay(T, noisy, mf.Limit(0.3, 1e-7))
    assert decay.rate == pytest.approx(2.0, rel=1e-3)
    assert decay.window[1] <= np.log(1e5) / 2.0
    below = mf.measure_decay(T, 0.3 - np.exp(-T), mf.Limit(0.3))
    assert np.isnan(below.rate) and not below.settled
    assert "too few steps" in str(below)


@rows("n", [0, 1, 2, 3, 6])
def test_few_steps_do_not_settle(n: int) -> None:
    decay = mf.measure_decay(T[:n], np.exp(-0.5 * T[:n]), mf.Limit(0.0))
    assert not decay.settled
    assert np.isnan(decay.rate) if n < 3 else decay.rate == pytest.approx(0.5)


def test_a_trap_has_the_exact_rate() -> None:
    """(X1): the mean relaxes with κσ/√(2κ), the energy twice as fast."""
    kappa, sigma = 1.0, 0.8
    trap = mf.Potential(lambda x: 0.5 * kappa * x[0] ** 2)
    problem = mf.Problem(mf.interval(COMM, 6.0, 0.15), trap, sigma, degree=3)
    limit = mf.Limit.of(mf.minimise(problem, tol=1e-12), tolerance=1e-8)
    assert limit.decay_rate == pytest.approx(sigma * np.sqrt(2.0 * kappa), rel=1e-5)
    assert limit.gap is not None and limit.gap < 1e-12
    start = mf.Density.from_function(problem, gaussian(-0.5, 2.0))
    states = list(mf.SchrodingerFlow(problem, 0.05, "sdirk2").run(start, 8.0))
    decay = mf.measure_decay([s.t for s in states], [s.energy for s in states], limit)
    assert decay.settled
    assert decay.rate == pytest.approx(limit.decay_rate, rel=2e-3)


def test_without_a_certificate() -> None:
    """F is not convex: a minimum and a rate, no gap."""
    well = mf.Potential(lambda x: 0.5 * x[0] ** 2) + (-0.2) * mf.MeanInteraction(1.0)
    problem = mf.Problem(mf.interval(COMM, 6.0, 0.2), well, 0.8, degree=2)
    limit = mf.Limit.of(mf.minimise(problem))
    assert limit.gap is None
    assert limit.decay_rate is not None and limit.decay_rate > 0.0
    assert limit.uncertainty > 0.0


def test_it_is_kept_beside_the_history(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    assert mf.Limit.read(path) is None
    limit = mf.Limit(-0.1234567890123456, None, 1.0 / 3.0)
    with mf.History(path, COMM) as history:
        history.append({"t": 0.0, "energy": 1.0})
        limit.write(path, COMM)
    assert mf.Limit.read(path) == limit
    assert {p.name for p in tmp_path.iterdir()} == {"history.csv", "history.json"}
    assert list(mf.History.read(path)) == ["t", "energy"]

    class Resumed:
        t, step = 1.0, 1

    with mf.History(path, COMM, resume=Resumed()) as history:
        history.append({"t": 1.0, "energy": 0.5})
    assert mf.Limit.read(path) == limit
    assert mf.History.read(path)["t"].tolist() == [0.0, 1.0]
    mf.History(path, COMM, overwrite=True).close()  # another run: that minimum is not its own
    assert mf.Limit.read(path) is None


@pytest.mark.parametrize("text", ["", "[1]", "3.0", '{"minimum": 1.0, "colour": 2}', "{}"])
def test_another_file_of_that_name_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "history.json").write_text(text)
    with pytest.raises(ValueError, match="does not hold the limit of a run"):
        mf.Limit.read(tmp_path / "history.csv")
