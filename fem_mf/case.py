"""A run described by a file: mesh, functional, flow or minimisation, output.

    [mesh]
    kind = "interval"           # interval, disk, ball, box; or file = "mesh.msh"
    radius = 5.0
    h = 0.25

    [problem]
    sigma = 0.5                 # and degree, mass, boundary

    [[functional]]
    term = "potential"          # mean-interaction, contact, network, or "module:function"
    g = "0.5 * x[0]**2"

    [start]
    m = "exp(-x[0]**2)"         # or u, a formula for −log m

    [flow]                      # or [minimise]
    kind = "schrodinger"        # schrodinger, hjb, langevin, relative-entropy-descent
    dt = 0.05
    t_end = 1.0

    [output]
    folder = "results/trap"

``python -m fem_mf run case.toml --set sigma=0.2`` makes it. A key of the command line is one of the
file, ``problem.sigma``, or its last part where only one table knows it. All other keys are those of
the functions that the tables stand for: what ``disk``, ``Problem`` and ``HJBFlow`` take. Formulas
are NumPy expressions in x, whose components are x[0], x[1] and x[2].

``python -m fem_mf sweep case.toml --over sigma=1,0.5,0.2`` makes one run for each value, in folders
of their own, and a table and a picture of how they end. Runs that are finished are not made again.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import inspect
import logging
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

from mpi4py import MPI

import numpy as np

from fem_mf import mesh as meshes
from fem_mf.density import Density
from fem_mf.flows.hjb import HJBFlow
from fem_mf.flows.langevin import LangevinFlow
from fem_mf.flows.relative_entropy_descent import RelativeEntropyDescent
from fem_mf.flows.schrodinger import SchrodingerFlow
from fem_mf.functionals.network import NetworkLoss
from fem_mf.functionals.terms import Contact, MeanInteraction, Potential
from fem_mf.mpi import on_root
from fem_mf.output.history import History
from fem_mf.output.results import open_results
from fem_mf.output.run import RUN_FILE, Run
from fem_mf.problem import Problem
from fem_mf.stationary.minimise import minimise
from fem_mf.typing import Array, PathLike

__all__ = ["Case", "sweep"]

_LOG = logging.getLogger(__name__)

_MESHES: dict[str, Callable[..., Any]] = {
    "interval": meshes.interval,
    "disk": meshes.disk,
    "ball": meshes.ball,
    "box": meshes.box,
}
_FLOWS: dict[str, Callable[..., Any]] = {
    "schrodinger": SchrodingerFlow,
    "hjb": HJBFlow,
    "langevin": LangevinFlow,
    "relative-entropy-descent": RelativeEntropyDescent,
}


def formula(text: str, *names: str) -> Callable[..., Array]:
    """A NumPy expression as a function of some names: ``formula("x[0]**2 + sin(x[1])", "x")``.

    Raises:
        ValueError: it is not an expression, or uses a name that NumPy does not know.
    """
    try:
        code = compile(text, "<formula>", "eval")
    except SyntaxError as error:
        raise ValueError(f"the formula {text!r} is not an expression: {error.msg}") from None
    unknown = [name for name in code.co_names if name not in names and not hasattr(np, name)]
    if unknown:
        raise ValueError(
            f"the formula {text!r} uses {unknown[0]!r}, which is neither {' nor '.join(names)} nor "
            "a function of NumPy"
        )
    known = {name: getattr(np, name) for name in code.co_names if name not in names}

    def evaluate(*values: Any) -> Array:
        given = dict(zip(names, values, strict=True))
        result = eval(code, {"__builtins__": {}}, {**known, **given})
        return np.broadcast_to(np.asarray(result, dtype=np.float64), values[0].shape[1:])

    return evaluate


def _network(data: str, neuron: str, loss: str = "squared") -> NetworkLoss:
    """The loss on a CSV file with columns z_1, ..., z_k, y; the neuron is a formula in x and z."""
    table = np.loadtxt(data, delimiter=",", ndmin=2, comments="#")
    inputs = table[:, 0] if table.shape[1] == 2 else table[:, :-1]
    return NetworkLoss(inputs, table[:, -1], formula(neuron, "x", "z"), loss=loss)


_TERMS: dict[str, Callable[..., Any]] = {
    "potential": lambda g: Potential(formula(g, "x")),
    "mean-interaction": lambda strength, target=0.0: MeanInteraction(strength, target),
    "contact": lambda beta: Contact(beta),
    "network": _network,
}


class Case:
    """What a case file describes, checked.

    Args:
        tables: the tables of the file.
        settings: values that replace those of the file, by key.

    Attributes:
        tables: the tables with the settings in place.

    Raises:
        ValueError: a table or a key that is not known, naming the nearest one that is; a table that
            is missing, or a value that cannot be read.
    """

    def __init__(
        self, tables: Mapping[str, Any], settings: Mapping[str, Any] | None = None
    ) -> None:
        self.tables: dict[str, Any] = copy.deepcopy(dict(tables))
        self._check_tables()
        for key, value in (settings or {}).items():
            table, name = self._place(key)
            self.tables.setdefault(table, {})[name] = value
        for table in self.tables:
            self._check_keys(table)

    @classmethod
    def read(cls, path: PathLike, settings: Mapping[str, Any] | None = None) -> Case:
        """Read a case file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not TOML, or as for the class.
        """
        try:
            tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"'{path}' is not a TOML file: {error}") from None
        return cls(tables, settings)

    def _check_tables(self) -> None:
        known = ["mesh", "problem", "functional", "start", "flow", "minimise", "output"]
        _check("table", self.tables, known)
        for name in ("mesh", "problem", "functional"):
            if name not in self.tables:
                raise ValueError(f"the case has no table [{name}]")
        if ("flow" in self.tables) == ("minimise" in self.tables):
            raise ValueError("a case has either a table [flow] or a table [minimise]")
        if not isinstance(self.tables["functional"], list):
            self.tables["functional"] = [self.tables["functional"]]

    def _keys(self, table: str) -> list[str]:
        """The keys that a table may have."""
        content = self.tables.get(table, {})
        if table == "mesh":
            kind = content.get("kind", "disk")
            maker = _MESHES[_choice("mesh.kind", kind, _MESHES)]
            return ["kind", "file", *_arguments(maker)]
        if table == "flow":
            kind = content.get("kind", "schrodinger")
            maker = _FLOWS[_choice("flow.kind", kind, _FLOWS)]
            more = _arguments(HJBFlow) if maker is RelativeEntropyDescent else []
            return ["kind", "t_end", "steady_residual", *_arguments(maker), *more]
        return {
            "problem": [name for name in _arguments(Problem) if name != "functional"],
            "start": ["m", "u"],
            "minimise": ["tol", "residual_tol", "max_iterations", "continuation"],
            "output": ["folder", "every", "minutes"],
        }[table]

    def _check_keys(self, table: str) -> None:
        if table != "functional":
            _check(f"key of [{table}]", self.tables[table], self._keys(table))
            return
        for term in self.tables["functional"]:
            if "term" not in term:
                raise ValueError("each [[functional]] needs a key term")
            if ":" not in term["term"]:
                _choice("functional.term", term["term"], _TERMS)

    def _place(self, key: str) -> tuple[str, str]:
        """The table and the name of a key of the command line."""
        tables = [name for name in self.tables if name != "functional"] + ["output", "start"]
        places = [(t, k) for t in dict.fromkeys(tables) for k in self._keys(t)]
        full = {f"{table}.{name}": (table, name) for table, name in places}
        if key in full:
            return full[key]
        found = [place for place in places if place[1] == key]
        if len(found) == 1:
            return found[0]
        if found:
            names = " or ".join(f"{table}.{name}" for table, name in found)
            raise ValueError(f"the key {key!r} is in several tables: say {names}")
        _check("key", [key], [*full, *(name for _, name in places)])
        raise AssertionError

    # -- what it stands for -----------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return Path(self.tables.get("output", {}).get("folder", "results/case"))

    def functional(self) -> Any:
        """F, the sum of the terms."""
        terms = []
        for entry in self.tables["functional"]:
            arguments = dict(entry)
            factor, name = arguments.pop("factor", 1.0), arguments.pop("term")
            terms.append(factor * _call(f"functional.{name}", _term(name), arguments))
        return reduce(add, terms)

    def mesh(self, comm: MPI.Comm) -> Any:
        """The mesh. Collective."""
        content = dict(self.tables["mesh"])
        if "file" in content:
            return meshes.read_mesh(content["file"], comm)
        kind = content.pop("kind", "disk")
        return _call("mesh", _MESHES[kind], content, comm)

    def run(
        self, comm: MPI.Comm, *, overwrite: bool = False, restart: bool = False
    ) -> dict[str, float]:
        """Make the run, and return its last numbers. Collective.

        Raises:
            Exception: as :class:`fem_mf.Run`, the flow or ``minimise``.
        """
        output = {k: v for k, v in self.tables.get("output", {}).items() if k != "folder"}
        domain = Run.mesh(self.folder, comm) if restart else self.mesh(comm)
        problem = _call("problem", Problem, self.tables["problem"], domain, self.functional())
        how: dict[str, Any] = {"overwrite": overwrite, "restart": restart, **output}
        if "flow" not in self.tables:
            how["minutes"] = None
        with Run(self.folder, problem, parameters=self.tables, **how) as run:
            start = self._start(problem)
            if "minimise" in self.tables:
                best = _call("minimise", minimise, self.tables["minimise"], problem, start)
                run.save(best)
                return run.result
            content = dict(self.tables["flow"])
            maker, t_end = _FLOWS[content.pop("kind", "schrodinger")], content.pop("t_end", 1.0)
            steady = content.pop("steady_residual", None)
            flow = _call("flow", maker, content, problem)
            for _ in run.steps(flow, start, t_end, steady_residual=steady):
                pass
            return run.result

    def _start(self, problem: Problem) -> Density:
        content = self.tables.get("start", {"m": "exp(-0.5 * (x[0]**2 + x[1]**2 + x[2]**2))"})
        if "u" in content:
            return Density.from_log(problem, formula(content["u"], "x"))
        return Density.from_function(problem, formula(content["m"], "x"))


def sweep(
    case: PathLike,
    key: str,
    values: Sequence[Any],
    comm: MPI.Comm,
    settings: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Make one run of a case for each value of a key; those that are finished are kept. Collective.

    The runs are in folders ``key=value`` of the case's own folder, beside ``sweep.csv``, which has
    the last numbers of each, and ``sweep.png``.

    Args:
        case: the case file.
        key: what varies, as for ``settings``.
        values: its values.
        comm: the communicator of the runs.
        settings: values that replace those of the file, by key.
        overwrite: make all runs again.

    Returns:
        The path of the table.

    Raises:
        ValueError: a key is not known, or a value does not suit it.
        Exception: as the runs; those that are finished stay.
    """
    cases = [Case.read(case, {**(settings or {}), key: value}) for value in values]
    folder = cases[0].folder
    rows: list[dict[str, float]] = []
    for one, value in zip(cases, values, strict=True):
        one.tables.setdefault("output", {})["folder"] = str(folder / f"{key}={value}")
        if not overwrite and on_root(comm, partial(_finished, one)):
            _LOG.info("%s is finished", one.folder)
            row = open_results(one.folder, comm).run["result"]
        else:
            _LOG.info("%s = %s: %s", key, value, one.folder)
            row = one.run(comm, overwrite=True)
        rows.append({key: value, **row})
    table = folder / "sweep.csv"
    with History(table, comm, overwrite=True) as history:
        for row in rows:
            history.append({name: row[name] for name in rows[0]})
    return table


def _finished(case: Case) -> bool:
    """Whether the folder of a case has a finished run of it. Rank 0."""
    if not (case.folder / RUN_FILE).exists():
        return False
    run = open_results(case.folder, MPI.COMM_SELF).run
    return bool(run["status"] == "finished" and run["parameters"] == case.tables)


def read_settings(words: Iterable[str]) -> dict[str, Any]:
    """The settings ``key=value`` of a command line; values are TOML, or else text.

    Raises:
        ValueError: a word has no ``=``.
    """
    settings = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not of the form key=value")
        settings[key.strip()] = read_value(text)
    return settings


def read_value(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _term(name: str) -> Callable[..., Any]:
    """The maker of a term: one of the short list, or ``module:function`` of the user's own."""
    if ":" not in name:
        return _TERMS[name]
    module, _, function = name.partition(":")
    try:
        maker: Callable[..., Any] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"functional.term = {name!r} cannot be imported: {error}") from None
    return maker


def _arguments(maker: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a table may give."""
    parameters = inspect.signature(maker).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [name for name in named if name not in ("comm", "problem", "mesh", "functional", "self")]


def _call(where: str, maker: Callable[..., Any], given: Mapping[str, Any], *first: Any) -> Any:
    """Call a maker with the keys of a table; what does not fit is said by key."""
    try:
        inspect.signature(maker).bind(*first, **given)
    except TypeError as error:
        raise ValueError(f"[{where}]: {error}; its keys are {_arguments(maker)}") from None
    return maker(*first, **given)


def _choice(key: str, value: Any, known: Mapping[str, Any]) -> str:
    if value not in known:
        raise ValueError(f"{key} = {value!r} is not known{_nearest(str(value), known)}")
    return str(value)


def _check(what: str, found: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for name in found:
        if name not in known:
            raise ValueError(f"the {what} {name!r} is not known{_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: what was probably meant, or all there is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
