"""Loss of an infinitely wide two-layer network, a functional of the parameter distribution.

A neuron is a function of its parameters x and of one datum z:

    F = NetworkLoss(z, y, neuron=lambda x, z: np.tanh(x[0] * z + x[1]))
    F.predict(density, new_z)    # the network's output

With labels y = ±1 and ``loss="logistic"`` it is a classifier, and f is the log-odds of y = 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from fem_mf.functionals.terms import Cylindrical
from fem_mf.mpi import global_sum
from fem_mf.points import evaluate
from fem_mf.typing import Array, SpaceFunction

__all__ = ["NetworkLoss"]

type Neuron = Callable[[Array, Any], Array]


class _Loss(NamedTuple):
    """ℓ(f, y) for outputs f and data y, and ∂ℓ/∂f; ℓ is convex in f, so F is convex in m."""

    value: Callable[[Array, Array], Array]
    slope: Callable[[Array, Array], Array]


_LOSSES = {
    "squared": _Loss(lambda f, y: (y - f) ** 2, lambda f, y: -2.0 * (y - f)),
    # logaddexp and expit neither overflow nor cancel for large |f|.
    "logistic": _Loss(lambda f, y: np.logaddexp(0.0, -y * f), lambda f, y: -y * expit(-y * f)),
}


class NetworkLoss(Cylindrical):
    """Mean loss of an infinitely wide two-layer network on data (z_j, y_j), j = 1..K.

    F(m) = (1/K) Σ_j ℓ(f(z_j), y_j),  V[m] = (1/K) Σ_j ∂_fℓ(f(z_j), y_j) N(z_j; ·),  where
    f(z) = ∫N(z; x) dm is the output and ℓ convex in f: (y − f)², or log(1 + e^(−yf)) for labels.

    Args:
        z: the inputs, ``(K,)`` or ``(K, k)``.
        y: the outputs, ``(K,)``; labels −1 and 1 for the logistic loss.
        neuron: ``neuron(x, z_j)`` with parameters ``x``, shape ``(3, n)``, and one datum (a number
            or ``(k,)``), returning ``(n,)``.
        loss: ``"squared"`` or ``"logistic"``.

    Raises:
        ValueError: if the data are empty or not finite, z and y differ in length, the loss is
            unknown, or a label is neither −1 nor 1.
    """

    _label = "the neuron at datum"

    def __init__(
        self, z: npt.ArrayLike, y: npt.ArrayLike, neuron: Neuron, loss: str = "squared"
    ) -> None:
        self.z = np.asarray(z, dtype=np.float64)
        self.y = np.asarray(y, dtype=np.float64)
        if self.z.ndim not in (1, 2) or self.y.ndim != 1:
            raise ValueError(
                f"z must be (K,) or (K, k) and y (K,); got shapes {self.z.shape} and {self.y.shape}"
            )
        if len(self.z) != len(self.y):
            raise ValueError(f"{len(self.z)} inputs z but {len(self.y)} outputs y")
        if len(self.y) == 0:
            raise ValueError("NetworkLoss needs at least one datum; z and y are empty")
        if not (np.isfinite(self.z).all() and np.isfinite(self.y).all()):
            raise ValueError("the data z, y contain NaN or infinite values; remove those rows")
        if loss not in _LOSSES:
            raise ValueError(f"loss must be 'squared' or 'logistic', not {loss!r}")
        if loss == "logistic" and not np.isin(self.y, (-1.0, 1.0)).all():
            raise ValueError(
                f"with loss='logistic' y are labels −1 or 1; got values {np.unique(self.y)[:5]}"
            )
        self.neuron, self.loss = neuron, loss
        value, slope = _LOSSES[loss]
        super().__init__(
            [_neuron_at(neuron, datum) for datum in self.z],
            lambda f: float(np.mean(value(f, self.y))),
            lambda f: slope(f, self.y) / len(self.y),
            convex=True,
        )

    def __repr__(self) -> str:
        """One line with the number of data and the loss."""
        return f"NetworkLoss({len(self.y)} data, {self.loss!r})"

    def _data(self) -> dict[str, Any]:
        return {"z": self.z, "y": self.y}

    def predict(self, density: Any, z: npt.ArrayLike | None = None) -> Array:
        """f(z) = ∫N(z; x) dm, the network's output, at the data or at new inputs. Collective.

        Args:
            density: the distribution m of the parameters.
            z: new inputs ``(L,)`` or ``(L, k)``; None means the inputs of the data.

        Returns:
            ``(K,)`` or ``(L,)`` outputs.
        """
        if z is None:
            return self.moments(density)
        comm, points, weights = density.problem.comm, density.points(), density.weights()
        neurons = (_neuron_at(self.neuron, datum) for datum in np.asarray(z, dtype=np.float64))
        local = [weights @ evaluate(comm, neuron, points, "neuron") for neuron in neurons]
        return global_sum(comm, local)


def _neuron_at(neuron: Neuron, datum: Any) -> SpaceFunction:
    return lambda x: neuron(x, datum)
