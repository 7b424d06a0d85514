"""A checkpoint read back: its mesh, its state, on any number of ranks.

The functional is not stored, so the problem has to be made again:

    saved = Saved.open(Path("run/checkpoint"), comm)
    problem = Problem(saved.mesh, functional, sigma=0.5, degree=2)
    state = saved.state(problem)
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np
from dolfinx import fem, mesh

from fem_mf.density import Density
from fem_mf.langevin import LangevinState
from fem_mf.log_density import LogDensity
from fem_mf.meshing import share_out
from fem_mf.parallel import all_ranks_agree
from fem_mf.problem import Problem
from fem_mf.relative_entropy import DescentState
from fem_mf.rows import read_rows
from fem_mf.state import HJBState, State

__all__ = ["FORMAT", "MANIFEST", "Saved", "describe"]

FORMAT = "fem_mf checkpoint 1"
MANIFEST = "manifest.json"
_KINDS = {kind.__name__: kind for kind in (State, HJBState, DescentState, LangevinState)}
_SAME = 1e-8  # relative, of the value of the functional then and now


def describe(problem: Problem) -> dict[str, Any]:
    """What two problems must have in common to share a checkpoint, besides mesh and functional."""
    return {
        "degree": problem.degree,
        "mass": "lumped" if problem.lumped else "consistent",
        "boundary": problem.boundary,
        "sigma": problem.sigma,
    }


@dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes:
        path: its folder.
        mesh: of the problem, shared out among the ranks there are now.
        t: time of the state.
        step: number of its step.
        extra: what the program added.
    """

    path: Path
    mesh: mesh.Mesh
    t: float
    step: int
    extra: dict[str, Any]
    _content: dict[str, Any] = field(repr=False)

    @classmethod
    def open(cls, path: Path, comm: MPI.Comm) -> Saved:
        """Read and check the manifest and the mesh. Collective; see ``Checkpoint.read``."""
        content: dict[str, Any] = {}
        error: Exception | None = None
        try:
            content = _manifest(path)
        except (OSError, ValueError) as caught:
            error = caught
        all_ranks_agree(comm, error)
        numbers = content["numbers"]
        domain = _read_mesh(path, comm, content["mesh"])
        return cls(path, domain, numbers["t"], numbers["step"], content["extra"], content)

    def state(self, problem: Problem) -> State:
        """The state, for a flow of the problem to go on from. Collective.

        Args:
            problem: on ``self.mesh``, as it was: functional, σ, degree, mass and boundary.

        Raises:
            ValueError: the problem is another one, or a file is damaged; on every rank.
        """
        self._check(problem)
        functions = {name: self._function(problem, name) for name in self._content["functions"]}
        kind = _KINDS[self._content["kind"]]
        if "u" in functions:
            values = functions["u"].x.array[: problem.num_owned].copy()
            density: Density = LogDensity(problem, values)
        else:
            values = functions["psi"].x.array[: problem.num_owned].copy()
            density = Density(problem, values, normalised=True)
        then, now = self._content["functional"], float(problem.functional.value(density))
        if abs(now - then) > _SAME * max(1.0, abs(then)):
            raise ValueError(
                f"the checkpoint '{self.path}' belongs to another functional: its density had "
                f"F = {then:.10g} there and has {now:.10g} here; go on with the same parameters "
                "and data"
            )
        known = {**self._content["numbers"], **functions, "density": density}
        return kind(**{f.name: known[f.name] for f in fields(kind) if f.name in known})

    def _check(self, problem: Problem) -> None:
        if problem.mesh is not self.mesh:
            raise ValueError("build the problem on the mesh of the checkpoint, Saved.mesh")
        here, there = describe(problem), self._content["problem"]
        different = [f"{k} = {there[k]!r}, not {here[k]!r}" for k in here if here[k] != there[k]]
        if different:
            raise ValueError(
                f"the checkpoint '{self.path}' belongs to a problem with {', '.join(different)}: "
                "go on with the same parameters; in a script, state.density.on(problem) takes the "
                "density of the old problem to another"
            )

    def _function(self, problem: Problem, name: str) -> fem.Function:
        entry = self._content["functions"][name]
        table = read_rows(problem.comm, self.path / entry["file"], entry["blocks"])
        function = problem.new_amplitude()
        function.name = name
        mine = table[problem.mesh.topology.original_cell_index]
        # DOLFINx asks for values at the nodes of each reference cell, and numbers them itself.
        function.interpolate(lambda x: mine.ravel())
        function.x.scatter_forward()
        return function


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"no checkpoint in '{path}': it has no {MANIFEST}; start the run "
            "without it, or name the folder of the run that wrote one"
        ) from None
    except UnicodeDecodeError as caught:
        raise ValueError(f"the checkpoint '{file}' is damaged: {caught}") from None
    try:
        whole = json.loads(text)
    except ValueError as caught:
        raise ValueError(f"the checkpoint '{file}' is damaged: {caught}") from None
    found = whole.get("format") if isinstance(whole, dict) else None
    if found != FORMAT:
        raise ValueError(f"'{file}' is no {FORMAT!r} but {found!r}: of another program or version")
    content: dict[str, Any] = whole.get("content")
    if zlib.crc32(json.dumps(content, sort_keys=True).encode()) != whole.get("crc32"):
        raise ValueError(f"the checkpoint '{file}' is damaged: its checksum is wrong")
    return content


def _read_mesh(path: Path, comm: MPI.Comm, entry: dict[str, Any]) -> mesh.Mesh:
    points, cells = (
        read_rows(comm, path / entry[name]["file"], entry[name]["blocks"])
        for name in ("points", "cells")
    )
    mine = _share(comm, cells), _share(comm, points)
    domain = share_out(comm, entry["cell"], entry["degree"], *mine)
    # Functions are stored at the nodes of reference cells: their corners must be where they were.
    here = domain.geometry.x[domain.geometry.dofmaps[0]][..., : domain.geometry.dim]
    there = points[cells[domain.topology.original_cell_index]]
    same = np.array_equal(here, there)
    all_ranks_agree(comm, None if same else RuntimeError("DOLFINx has turned cells of the mesh"))
    return domain


def _share(comm: MPI.Comm, table: Any) -> Any:
    """This rank's part of a table, in memory."""
    first, last = (len(table) * rank // comm.size for rank in (comm.rank, comm.rank + 1))
    return np.array(table[first:last])
