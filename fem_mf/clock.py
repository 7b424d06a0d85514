"""Time of a run: an integer number of equal steps while they are equal, and an exact end.

A run asks for each step and says whether it is accepted:

    clock = Clock(dt, t_end)
    while not clock.done:
        step = clock.next_step()
        clock.accept()    # or clock.reject(0.5), to try half of it
"""

from __future__ import annotations

__all__ = ["Clock"]

_SMALLEST_STEP = 1e-12  # relative to the time span


class Clock:
    """Time as an integer number of equal steps as long as they are equal; ends exactly."""

    def __init__(self, dt: float, t_end: float, t: float = 0.0, step: int = 0) -> None:
        self.t, self.step, self.last = t, step, 0.0
        self._dt, self._t_end = dt, t_end
        self._origin, self._steps_from_origin = t, 0

    @property
    def dt(self) -> float:
        """The step to come, if the end leaves room for it."""
        return self._dt

    @property
    def done(self) -> bool:
        """Whether the end is reached."""
        return self.t >= self._t_end

    @property
    def may_shrink(self) -> bool:
        """Whether a smaller step still means something."""
        return self._dt > _SMALLEST_STEP * max(self._t_end, 1e-300)

    def next_step(self) -> float:
        """The step to try: dt, or what is left."""
        left = self._t_end - self.t
        # A last step longer by rounding is better than one more of length 1e-16.
        self.last = left if self._dt >= left * (1.0 - 1e-9) else self._dt
        return self.last

    def accept(self, factor: float = 1.0) -> None:
        """Advance by the step tried; the next dt is ``factor`` times this one."""
        self.step += 1
        self._steps_from_origin += 1
        if self.last != self._dt:
            self.t = self._t_end
        else:
            self.t = self._origin + self._steps_from_origin * self._dt
            if self._t_end - self.t < 1e-9 * self._dt:
                self.t = self._t_end
        if factor != 1.0:
            self._rescale(factor)

    def reject(self, factor: float) -> None:
        """Stay, and try ``factor`` times the step next."""
        if self.last < self._dt:
            self._dt = self.last
        self._rescale(factor)

    def _rescale(self, factor: float) -> None:
        self._dt *= factor
        self._origin, self._steps_from_origin = self.t, 0
