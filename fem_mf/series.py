"""What all series of fields share: which calls are written, and the fields of a density."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from typing import TYPE_CHECKING

import numpy as np
from dolfinx import fem

from fem_mf.history import Instant, RunFile

if TYPE_CHECKING:
    from fem_mf.density import Density
    from fem_mf.problem import Problem

__all__ = ["Series", "amplitude_to_fields"]


class Series(RunFile):
    """Fields over time: which calls are written, and at which times."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        problem: Problem,
        every: int,
        suffix: str,
        resume: Instant | None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        super().__init__(path, problem.comm, suffix)
        self._problem = problem
        self._every = every
        self._until = None if resume is None else resume.t  # times kept of a series gone on with
        self._calls = 0 if resume is None else resume.step
        self._last = -math.inf
        self._num_steps = 0  # written so far
        self._closed = False

    def write(self, t: float, density: Density, force: bool = False) -> bool:
        """Write the fields of one density, if this call is one of each ``every``. Collective.

        The first call is always written.

        Args:
            t: the time, later than all times written before.
            density: the density, on the problem's mesh.
            force: write whatever ``every`` says (the last step of a run).

        Returns:
            Whether something was written.

        Raises:
            ValueError: ``t`` is not later than the last time written, or the series is closed.
            OSError: the disk refuses.
        """
        if self._closed:
            raise ValueError(f"'{self.path}' is closed")
        due = force or self._calls % self._every == 0
        if due and not self._last < t < math.inf:
            raise ValueError(f"'{self.path}': time {t} must be later than {self._last}")
        self._calls += 1
        if due:
            self._write(float(t), density)
            self._last = float(t)
            self._num_steps += 1
        return due

    def _free_stem(self, ending: str) -> str:
        """The name of the series, numbered where runs before this one have files of that name."""
        stem, number = self.path.stem, 1
        while self._until is not None and self.path.with_name(stem + ending).exists():
            number += 1
            stem = f"{self.path.stem}-{number}"
        return stem

    @abstractmethod
    def _write(self, t: float, density: Density) -> None: ...

    def close(self) -> None:
        """Write no more. Calling it again does nothing."""
        self._closed = True


def amplitude_to_fields(
    psi: fem.Function[np.float64], m: fem.Function[np.float64], u: fem.Function[np.float64]
) -> None:
    """Set m = ψ² and u = −log m at the nodes the three share; u stays finite where ψ = 0."""
    m.x.array[:] = psi.x.array**2
    u.x.array[:] = -2.0 * np.log(np.maximum(np.abs(psi.x.array), np.finfo(float).tiny))
