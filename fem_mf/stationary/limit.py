"""The limit of the energy of a run, and predicted and measured rates of convergence to it.

    limit = Limit.of(minimise(problem))             # minimum, certificate and predicted rate
    limit.write("run/history.csv", problem.comm)    # for plots of that history
    columns = History.read("run/history.csv")
    print(measure_decay(columns["t"], columns["energy"], limit))

The energy of a flow decays as e^{−rt} only once all faster modes have decayed. The local rate is
therefore measured in three successive windows and extrapolated.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from mpi4py import MPI

import numpy as np
import numpy.typing as npt

from fem_mf.mpi import ConvergenceError, on_root
from fem_mf.stationary.decay import decay_rate
from fem_mf.stationary.minimise import Minimum
from fem_mf.typing import Array, PathLike

__all__ = ["Decay", "Limit", "limit_file", "measure_decay"]


_LOG = logging.getLogger(__name__)
_MARGIN = 100.0  # an energy this many uncertainties above the minimum gives a rate to one per cent
_SETTLED = 0.02  # largest relative difference of a settled local rate from the extrapolated one
_EQUAL = 1e-3  # relative difference below which local rates count as equal
_POINTS = 3  # least number of points in each window


@dataclass(frozen=True)
class Limit:
    """The limit of the energy along a flow.

    Attributes:
        minimum: F^σ of the computed minimiser, on the discretisation of the flow (the energies of
            an ``HJBFlow`` tend to another minimum, within the discretisation error).
        gap: certificate (C1): the true minimum is between minimum − gap and minimum; None without
            a certificate.
        decay_rate: predicted rate r of F^σ(m_t) − min F^σ ~ e^{−rt}, that of the slowest mode;
            None if unknown. A start without this mode, for example by symmetry, decays faster.
    """

    minimum: float
    gap: float | None = None
    decay_rate: float | None = None

    @classmethod
    def of(cls, best: Minimum, tolerance: float = 1e-4) -> Self:
        """Take the minimum and its certificate, and compute the rate (D5). Collective.

        Args:
            best: the result of ``minimise``. If its rate cannot be computed, a warning is logged
                and the rate is None.
            tolerance: relative tolerance of the rate.
        """
        rate = None
        try:
            rate = decay_rate(best.density.problem, best.density, tolerance=tolerance)
        except ConvergenceError as error:
            _LOG.warning("no decay rate: %s", error)
        return cls(best.energy, None if np.isnan(best.gap) else best.gap, rate)

    @property
    def uncertainty(self) -> float:
        """Largest distance of the true minimum from ``minimum``: the gap, and rounding."""
        return max(self.gap or 0.0, 64.0 * float(np.finfo(float).eps) * abs(self.minimum))

    def write(self, history: PathLike, comm: MPI.Comm) -> None:
        """Write the limit beside a history, as JSON of the same name. Collective.

        Args:
            history: path of the ``.csv`` file; the JSON file ends in ``.json`` instead.
            comm: the communicator of the run; rank 0 writes.

        Raises:
            OSError: on every rank, if the file cannot be written.
        """
        path = limit_file(history)

        def work() -> None:
            new = path.with_name(path.name + "-new")
            new.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
            new.replace(path)

        on_root(comm, work)

    @classmethod
    def read(cls, history: PathLike) -> Self | None:
        """Read the limit of a history, None if there is none. Every rank reads the file.

        Args:
            history: path of the ``.csv`` file.

        Raises:
            ValueError: if the file beside the history does not hold a limit.
        """
        path = limit_file(history)
        if not path.exists():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"'{path}' does not hold the limit of a run: {error}") from error


def limit_file(history: PathLike) -> Path:
    """The path of the JSON file that belongs to a history."""
    return Path(history).with_suffix(".json")


@dataclass(frozen=True)
class Decay:
    """The measured rate at which an energy decays to its minimum.

    Attributes:
        rate: rate in the window; NaN if it cannot be measured.
        window: first and last time of the fit.
        extrapolated: the limit of the local rates as t → ∞, by Aitken's method; NaN if they do
            not converge.
        settled: whether the local rate is within two per cent of the extrapolated one; otherwise
            the run is too short for its decay to be asymptotic.
    """

    rate: float
    window: tuple[float, float]
    extrapolated: float
    settled: bool

    def __str__(self) -> str:
        """One sentence with the rate and its window."""
        if np.isnan(self.rate):
            return "the run has too few steps above the uncertainty of the minimum for a rate"
        first, last = self.window
        text = f"F^σ − min F^σ falls like e^(−{self.rate:.4f} t) for {first:.4g} ≤ t ≤ {last:.4g}"
        if np.isfinite(self.extrapolated):
            text += f"; extrapolated to t → ∞: {self.extrapolated:.4f}"
        if not self.settled:
            text += "; the decay is not asymptotic yet: the local rate still changes"
        return text


def measure_decay(t: npt.ArrayLike, energy: npt.ArrayLike, limit: Limit) -> Decay:
    """Measure the rate at which the energy decays to its minimum.

    Only energies well above the uncertainty of the minimum are used. The rate is fitted in the
    last sixth of their time span and compared with those of the two sixths before.

    Args:
        t: ``(n,)`` times, ascending.
        energy: ``(n,)`` energies.
        limit: the minimum and its certificate.
    """
    t, excess = np.asarray(t, dtype=float), np.asarray(energy, dtype=float) - limit.minimum
    low = ~(excess > _MARGIN * limit.uncertainty)
    count = int(np.argmax(low)) if low.any() else len(t)
    t, logarithm = t[:count], np.log(excess[:count])
    nowhere = Decay(np.nan, (np.nan, np.nan), np.nan, False)
    if count < _POINTS:
        return nowhere
    ends = t[0] + (t[-1] - t[0]) * np.array([0.5, 2.0 / 3.0, 5.0 / 6.0, 1.0])
    slack = 1e-9 * (t[-1] - t[0])
    windows = [(t >= a - slack) & (t <= b + slack) for a, b in pairwise(ends)]
    if min(int(window.sum()) for window in windows) < _POINTS:
        last = slice(-_POINTS, None)
        return Decay(_slope(t[last], logarithm[last]), (t[-_POINTS], t[-1]), np.nan, False)
    rates = [_slope(t[window], logarithm[window]) for window in windows]
    limiting = _extrapolate(rates)
    settled = bool(abs(rates[-1] - limiting) <= _SETTLED * abs(rates[-1]))  # False if NaN
    return Decay(rates[-1], (float(t[windows[-1]][0]), float(t[-1])), limiting, settled)


def _slope(t: Array, logarithm: Array) -> float:
    return -float(np.polyfit(t - t.mean(), logarithm, 1)[0])


def _extrapolate(rates: list[float]) -> float:
    """The limit of three numbers if they converge geometrically, else NaN."""
    first, second = rates[1] - rates[0], rates[2] - rates[1]
    if abs(second) <= _EQUAL * abs(rates[2]):
        return rates[2]
    ratio = second / first if first else np.inf
    return rates[2] + second * ratio / (1.0 - ratio) if abs(ratio) < 1.0 else float("nan")
