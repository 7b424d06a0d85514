"""Types used in many modules."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "PathLike", "SpaceFunction"]

type Array = npt.NDArray[np.float64]
type PathLike = str | os.PathLike[str]
# A function of space maps x of shape (3, n) to (n,), as in dolfinx.fem.Function.interpolate.
type SpaceFunction = Callable[[Array], Array]
