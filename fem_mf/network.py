"""The loss of an infinitely wide two-layer network as a functional of the law of its neurons.

F = NetworkLoss(z, y, neuron=lambda x, z: np.tanh(x[0] * z + x[1]))
F.predict(density, new_z)    # the network's output
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fem_mf.features import Array, SpaceFunction, evaluate
from fem_mf.functionals import Cylindrical
from fem_mf.parallel import global_sum

__all__ = ["NetworkLoss"]

type Neuron = Callable[[Array, Any], Array]


class NetworkLoss(Cylindrical):
    """Quadratic loss of an infinitely wide two-layer network on data (z_j, y_j), j = 1..K.

    F(m) = (1/K) Σ_j (y_j − ∫N(z_j; x) dm)²,  V[m] = −(2/K) Σ_j (y_j − ∫N(z_j;·) dm) N(z_j; ·).

    Args:
        z: the inputs, ``(K,)`` or ``(K, k)``.
        y: the outputs, ``(K,)``.
        neuron: ``neuron(x, z_j)`` of parameters ``x``, shape ``(3, n)``, and one datum (a number,
            or ``(k,)``), returning ``(n,)``.

    Raises:
        ValueError: empty data, values that are not finite, or z and y of different length.
    """

    _label = "the neuron at datum"

    def __init__(self, z: npt.ArrayLike, y: npt.ArrayLike, neuron: Neuron) -> None:
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
        self.neuron = neuron
        super().__init__(
            [_neuron_at(neuron, datum) for datum in self.z],
            lambda f: float(np.mean((self.y - f) ** 2)),
            lambda f: (-2.0 / len(self.y)) * (self.y - f),
            convex=True,
        )

    def predict(self, density: Any, z: npt.ArrayLike | None = None) -> Array:
        """f(z) = ∫N(z; x) dm, the network's output, at the data or at new inputs. Collective.

        Args:
            density: the law m of the neurons.
            z: new inputs ``(L,)`` or ``(L, k)``; None for the data's own.

        Returns:
            ``(K,)`` or ``(L,)`` outputs.
        """
        if z is None:
            return self.moments(density)
        problem, measure = density.problem, density.measure()
        points = problem.potential_nodes[:, : problem.num_potential_owned]
        local = np.array(
            [
                measure @ evaluate(problem.comm, _neuron_at(self.neuron, d), points, "neuron")
                for d in np.asarray(z, dtype=np.float64)
            ]
        )
        return global_sum(problem.comm, local)


def _neuron_at(neuron: Neuron, datum: Any) -> SpaceFunction:
    return lambda x: neuron(x, datum)
