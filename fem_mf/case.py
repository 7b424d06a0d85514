"""A run described by a file: mesh, functional, flow or minimisation, output.

``python -m fem_mf run case.toml --set sigma=0.2`` runs it. The keys of a table are arguments of the
function or class that it stands for, such as ``disk``, ``Problem``, ``Contact`` or ``HJBFlow``. On
the command line a key is called ``problem.sigma`` or ``contact.beta``, or ``sigma`` if no other
table or term has it. Formulas are NumPy expressions in x, whose components are x[0], x[1] and x[2].
Paths are relative to the current folder.

``python -m fem_mf sweep case.toml --over sigma=1,0.5,0.2`` runs the case for each value in its own
folder, and writes a table and a plot of the final numbers. Finished runs are kept.
"""

from __future__ import annotations

import ast
import copy
import csv
import difflib
import importlib
import inspect
import io
import json
import logging
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
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
from fem_mf.functionals.terms import Contact, Functional, MeanInteraction, Potential
from fem_mf.mpi import number, on_root, positive, warn
from fem_mf.output.checkpoint import MANIFEST
from fem_mf.output.history import replace_file
from fem_mf.output.results import open_results
from fem_mf.output.run import CHECKPOINT, RUN_FILE, Run
from fem_mf.plotting.history import plot_sweep
from fem_mf.problem import Problem
from fem_mf.stationary.minimise import minimise
from fem_mf.typing import Array, PathLike

__all__ = ["EXAMPLE", "Case", "formula", "read_settings", "read_values", "sweep"]

_LOG = logging.getLogger(__name__)

# A complete case with comments, shown in the help.
EXAMPLE = """\
[mesh]
kind = "interval"           # interval, disk, ball, box; or file = "mesh.msh" alone
radius = 5.0
h = 0.25

[problem]
sigma = 0.5                 # and degree, mass, boundary

[[functional]]
term = "potential"          # mean-interaction, contact, network, or "module:function"
g = "0.5 * x[0]**2"         # and factor, a number

[start]
m = "exp(-x[0]**2)"         # or u, a formula for −log m

[flow]                      # or [minimise]
kind = "schrodinger"        # schrodinger, hjb, langevin, relative-entropy-descent
dt = 0.05
t_end = 1.0

[output]
folder = "results/trap"
"""

type _Maker = Callable[..., Any]

_START = "exp(-0.5 * (x[0]**2 + x[1]**2 + x[2]**2))"
_TABLES = ["mesh", "problem", "functional", "start", "flow", "minimise", "output"]
# Arguments that a file cannot give.
_NO_KEYS = {"comm", "problem", "mesh", "functional", "facet_tags", "start", "starts"}
_NO_KEYS |= {"accelerator", "callback"}
_MESHES: dict[str, _Maker] = {
    "interval": meshes.interval,
    "disk": meshes.disk,
    "ball": meshes.ball,
    "box": meshes.box,
}
_DESCENT = "relative-entropy-descent"
_FLOWS: dict[str, _Maker] = {
    "schrodinger": SchrodingerFlow,
    "hjb": HJBFlow,
    "langevin": LangevinFlow,
    _DESCENT: lambda problem, dt, **options: RelativeEntropyDescent(problem, dt, **options),
}
_FIXED = ("scheme", "form", "decomposed", "weighted")  # HJBFlow arguments that the descent fixes


def formula(text: str, *names: str) -> Callable[..., Array]:
    """A NumPy expression as a function of some names: ``formula("x[0]**2 + sin(x[1])", "x")``.

    It may use NumPy's elementwise functions (``sin``, ``maximum``, ``where``) and ``pi``. Sums and
    maxima over an array are rejected, since they would depend on the points of a rank.

    Raises:
        ValueError: if it is not an expression, or uses an unknown name.
    """
    try:
        tree = ast.parse(text, "<formula>", "eval")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the formula {text!r} is not an expression: {error}") from None
    for node in ast.walk(tree):
        _check_node(node, text, names)
    found = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(names)
    known = {name: getattr(np, name) for name in found}
    code = compile(tree, "<formula>", "eval")

    def evaluate(*values: Any) -> Array:
        given = dict(zip(names, values, strict=True))
        result = eval(code, {"__builtins__": {}}, {**known, **given})
        return np.broadcast_to(np.asarray(result, dtype=np.float64), values[0].shape[1:])

    return evaluate


def _check_node(node: ast.AST, text: str, names: Sequence[str]) -> None:
    """Reject operations that are not elementwise, since their results would differ by rank."""
    if isinstance(node, ast.Name) and node.id not in names:
        value = getattr(np, node.id, None)
        each = isinstance(value, np.ufunc) and value.signature is None
        if not (each or isinstance(value, float) or value is np.where):
            raise ValueError(
                f"the formula {text!r} uses {node.id!r}, which is neither {' nor '.join(names)} "
                "nor a function of NumPy that acts on each point"
            )
    if isinstance(node, ast.Attribute):
        raise ValueError(f"the formula {text!r} uses .{node.attr}: call functions without a dot")
    if isinstance(node, ast.Subscript) and not (
        isinstance(node.value, ast.Name)
        and isinstance(node.slice, ast.Constant)
        and isinstance(node.slice.value, int)
    ):
        raise ValueError(f"the formula {text!r}: components are x[0], x[1] and x[2]")
    if isinstance(node, ast.MatMult):
        raise ValueError(f"the formula {text!r} has a product @, which sums over points")


def _network(comm: MPI.Comm, data: str, neuron: str, loss: str = "squared") -> NetworkLoss:
    """The loss for a CSV file with columns z_1, ..., z_k, y; the neuron is a formula in x, z."""
    table = on_root(comm, lambda: np.genfromtxt(data, delimiter=",", ndmin=2))
    table = table[1:] if np.isnan(table[:1]).all() else table  # the names of the columns
    if table.shape[1] < 2:
        raise ValueError(f"'{data}' needs columns of inputs and one of outputs, with commas")
    inputs = table[:, 0] if table.shape[1] == 2 else table[:, :-1]
    return NetworkLoss(inputs, table[:, -1], formula(str(neuron), "x", "z"), loss=loss)


_TERMS: dict[str, _Maker] = {
    "potential": lambda comm, g: Potential(formula(str(g), "x")),
    "mean-interaction": lambda comm, strength, target=0.0: MeanInteraction(strength, target),
    "contact": lambda comm, beta: Contact(beta),
    "network": _network,
}


class Case:
    """The checked contents of a case file.

    Args:
        tables: the tables of the file.
        settings: values that replace those of the file, by key.

    Attributes:
        tables: the tables, updated by the settings.

    Raises:
        ValueError: if a table, kind, term or key is unknown (the message suggests the nearest known
            one), or a table or a kind is missing.
    """

    def __init__(
        self, tables: Mapping[str, Any], settings: Mapping[str, Any] | None = None
    ) -> None:
        self.tables: dict[str, Any] = copy.deepcopy(dict(tables))
        self._check_tables()
        # Kinds come first: the other keys depend on them.
        for key, value in sorted((settings or {}).items(), key=lambda s: not s[0].endswith("kind")):
            entry, name = self._place(key)
            entry[name] = value
        if "file" in self.tables["mesh"] and len(self.tables["mesh"]) > 1:
            raise ValueError("[mesh] has either a key file or a kind with its numbers, not both")
        for where, entry, keys in self._entries():
            _check("key", entry, keys, f" in [{where}]")
        if len(self.tables["start"]) > 1:
            raise ValueError("[start] has either a key m or a key u, not both")
        if not isinstance(self.tables["output"].get("folder", ""), str):
            raise ValueError("output.folder must be a text")

    @classmethod
    def read(cls, path: PathLike, settings: Mapping[str, Any] | None = None) -> Case:
        """Read a case file.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not TOML, or for the reasons given for the class.
        """
        try:
            tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"'{path}' is not a TOML file: {error}") from None
        return cls(tables, settings)

    def _check_tables(self) -> None:
        _check("table", self.tables, _TABLES)
        for name in ("mesh", "problem", "functional"):
            if name not in self.tables:
                raise ValueError(f"the case has no table [{name}]")
        if ("flow" in self.tables) == ("minimise" in self.tables):
            raise ValueError("a case has either a table [flow] or a table [minimise]")
        for name in ("start", "output"):
            self.tables.setdefault(name, {})
        terms = self.tables["functional"]
        self.tables["functional"] = terms if isinstance(terms, list) else [terms]
        for name, content in self.tables.items():
            for entry in content if name == "functional" else [content]:
                if not isinstance(entry, dict):
                    raise ValueError(f"{name} is a table, [{name}], not {entry!r}")

    def _entries(self) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Name, content and admissible keys of each table and each term."""
        for table, content in self.tables.items():
            if table != "functional":
                yield table, content, _keys(table, content)
                continue
            for entry in content:
                term = entry.get("term")
                if isinstance(term, str) and ":" in term:  # the function knows its keys
                    yield term, entry, list(dict.fromkeys(["term", "factor", *entry]))
                else:
                    maker = _chosen("functional", "term", entry, _TERMS)
                    yield str(term), entry, ["term", "factor", *_arguments(maker)]

    def _place(self, key: str) -> tuple[dict[str, Any], str]:
        """The table and the name of a key of the command line."""
        places = [
            (f"{where}.{name}", entry, name)
            for where, entry, keys in self._entries()
            for name in keys
        ]
        found = [place for place in places if key in (place[0], place[2])]
        if len(found) > 1:
            names = " or ".join(full for full, _, _ in found)
            raise ValueError(f"the key {key!r} has several meanings: {names}")
        if not found:
            _check("key", [key], [name for full, _, short in places for name in (full, short)])
        return found[0][1:]

    # -- objects described by the case ------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The folder of the results."""
        return Path(self.tables["output"].get("folder", "results/case"))

    def functional(self, comm: MPI.Comm) -> Functional:
        """F, the sum of the terms. Collective."""
        terms = []
        for entry in self.tables["functional"]:
            arguments = dict(entry)
            factor, name = arguments.pop("factor", 1.0), arguments.pop("term")
            if ":" in name:
                term = _call(name, _imported(name), arguments)
            else:
                term = _call(name, _TERMS[name], arguments, comm)
            if not isinstance(term, Functional):
                raise ValueError(f"{name} returned {type(term).__name__}, not a fem_mf.Functional")
            terms.append(_call(name, number, {}, "factor", factor) * term)
        total: Functional = reduce(add, terms)
        return total

    def mesh(self, comm: MPI.Comm) -> Any:
        """The mesh. Collective."""
        content = dict(self.tables["mesh"])
        if "file" in content:
            return _call("mesh", meshes.read_mesh, {"path": content["file"]}, comm=comm)
        return _call("mesh", _MESHES[content.pop("kind")], content, comm)

    def problem(self, domain: Any) -> Problem:
        """The problem on a mesh. Collective."""
        given = dict(self.tables["problem"])
        if not isinstance(given.get("boundary", ""), str) and "file" in self.tables["mesh"]:
            given["facet_tags"] = meshes.read_facet_tags(self.tables["mesh"]["file"], domain)
        functional = self.functional(domain.comm)
        return _call("problem", Problem, given, domain, functional)  # type: ignore[no-any-return]

    def run(
        self, comm: MPI.Comm, *, overwrite: bool = False, restart: bool = False
    ) -> dict[str, Any]:
        """Run the case and return its final numbers. Collective.

        Raises:
            ValueError: if a value is missing, out of range or of the wrong type.
            Exception: errors of :class:`fem_mf.Run`, the flow or ``minimise``.
        """
        if restart and "minimise" in self.tables:
            raise ValueError("a minimisation has no checkpoint to restart from; begin again")
        problem = self.problem(Run.mesh(self.folder, comm) if restart else self.mesh(comm))
        how: dict[str, Any] = {"overwrite": overwrite, "restart": restart}
        how |= {"parameters": self.tables, **self.tables["output"]}
        how.pop("folder", None)
        if "minimise" in self.tables:
            with _call("output", Run, {**how, "minutes": None}, self.folder, problem) as run:
                start = self._start(problem) if self.tables["start"] else None
                run.save(_call("minimise", minimise, self.tables["minimise"], problem, start))
            return dict(run.result)
        content = dict(self.tables["flow"])
        maker = _FLOWS[content.pop("kind")]
        span = {name: content.pop(name) for name in ("t_end", "steady_residual") if name in content}
        t_end, steady = _call("flow", _span, span)
        # Objects that may raise an error are built before the folder is created.
        flow, start = _call("flow", maker, content, problem), self._start(problem)
        with _call("output", Run, how, self.folder, problem) as run:
            for _ in run.steps(flow, start, t_end, steady_residual=steady):
                pass
        return dict(run.result)

    def _start(self, problem: Problem) -> Density:
        content = self.tables["start"]
        if "u" in content:
            return Density.from_log(problem, formula(str(content["u"]), "x"))
        return Density.from_function(problem, formula(str(content.get("m", _START)), "x"))


def sweep(
    case: PathLike,
    key: str,
    values: Sequence[Any],
    comm: MPI.Comm,
    settings: Mapping[str, Any] | None = None,
    *,
    overwrite: bool = False,
    restart: bool = False,
) -> list[dict[str, Any]]:
    """Run a case for each value of a key; finished runs are kept. Collective.

    The runs are in folders ``key=value`` of the case's own folder, beside ``sweep.csv``, which has
    the final numbers of each run, and ``sweep.png``.

    Args:
        case: the case file.
        key: the key that varies, named as in ``settings``.
        values: its values.
        comm: the communicator of the runs.
        settings: values that replace those of the file, by key.
        overwrite: whether to repeat all runs.
        restart: whether to resume stopped runs from their checkpoints instead of repeating them.

    Returns:
        The value and the final numbers of each run.

    Raises:
        ValueError: if a key is unknown, or a value does not suit it.
        FileExistsError: if a folder has a run of another case, without ``overwrite``.
        Exception: errors of the runs; finished runs are kept.
    """

    def read() -> list[tuple[Case, dict[str, Any] | None]]:
        cases = [Case.read(case, {**(settings or {}), key: value}) for value in values]
        for one, value in zip(cases, values, strict=True):
            name = f"{key}={value}".replace("/", "_")
            one.tables["output"]["folder"] = str(one.folder / name)
        return [(one, None if overwrite else _result(one)) for one in cases]

    rows: list[dict[str, Any]] = []
    cases = on_root(comm, read)
    for (one, row), value in zip(cases, values, strict=True):
        done = "finished already" if row else "running"
        _LOG.info("%s = %s: %s, in %s", key, value, done, one.folder)
        if row is None:
            resume = restart and on_root(comm, (one.folder / CHECKPOINT / MANIFEST).exists)
            row = one.run(comm, overwrite=not resume, restart=resume)
        rows.append({key: value, **row})
    folder = cases[0][0].folder.parent
    on_root(comm, lambda: _write_table(folder / "sweep.csv", rows))
    try:
        plot_sweep(folder / "sweep.png", rows, comm)
    except ImportError as error:  # the plot is optional
        warn(comm, _LOG, "no picture of the sweep: %s", error)
    return rows


def _result(case: Case) -> dict[str, Any] | None:
    """The final numbers of a finished case; None if it has to be run. Rank 0."""
    if not (case.folder / RUN_FILE).exists():
        return None
    run = open_results(case.folder, MPI.COMM_SELF).run
    wanted = json.loads(json.dumps(case.tables, default=str))  # in the form of the record
    for tables in (wanted, run["parameters"]):
        tables.get("output", {}).pop("folder", None)  # results may have been moved
    if run["parameters"] != wanted:
        raise FileExistsError(
            f"'{case.folder}' has the results of another case: choose another folder "
            "(--set output.folder=...), or replace all runs by overwrite=True (--overwrite)"
        )
    return dict(run["result"]) if run["status"] == "finished" else None


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the rows, with the columns that are common to all. Rank 0."""
    columns = [name for name in rows[0] if all(name in row for row in rows)]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    replace_file(path, text.getvalue())


def read_settings(words: Iterable[str]) -> dict[str, Any]:
    """The settings ``key=value`` of a command line; values are TOML, otherwise text.

    Raises:
        ValueError: if a word has no ``=``.
    """
    return {key: _read_value(text) for key, text in map(_split, words)}


def read_values(word: str) -> tuple[str, list[Any]]:
    """The key and the values of ``key=value,value,...`` of a command line.

    Raises:
        ValueError: if there is no ``=``, no value, or a repeated value.
    """
    key, text = _split(word)
    values = _read_value(f"[{text}]")
    if not isinstance(values, list):  # unquoted words are not TOML
        values = [_read_value(value) for value in text.split(",")]
    if not values or "" in values:
        raise ValueError(f"{word!r} has no value, or an empty one: use key=value,value")
    if len({str(value) for value in values}) < len(values):
        raise ValueError(f"{word!r} has a value twice")
    return key, values


def _split(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r} is not of the form key=value")
    return key.strip(), text.strip()


def _read_value(text: str) -> Any:
    """A TOML value, or the text itself if it is not TOML."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def _keys(table: str, content: Mapping[str, Any]) -> list[str]:
    """The keys that a table may have."""
    if table == "mesh":
        if "file" in content:
            return ["file"]
        return ["kind", "file", *_arguments(_chosen("mesh", "kind", content, _MESHES))]
    if table == "flow":
        maker = _chosen("flow", "kind", content, _FLOWS)
        keys = _arguments(HJBFlow if content["kind"] == _DESCENT else maker)
        keys = [key for key in keys if content["kind"] != _DESCENT or key not in _FIXED]
        return ["kind", "t_end", "steady_residual", *keys]
    return {
        "problem": _arguments(Problem),
        "start": ["m", "u"],
        "minimise": _arguments(minimise),
        "output": ["folder", "every", "minutes"],
    }[table]


def _chosen(
    table: str, key: str, content: Mapping[str, Any], known: Mapping[str, _Maker]
) -> _Maker:
    """The function or class that the kind or the term of a table names."""
    if key not in content:
        raise ValueError(f"[{table}] needs a key {key}: {', '.join(known)}")
    if content[key] not in list(known):
        near = _nearest(str(content[key]), known)
        raise ValueError(f"unknown {table}.{key} {content[key]!r}{near}")
    return known[content[key]]


def _imported(name: str) -> _Maker:
    """The user's function named by ``module:function``."""
    module, _, function = name.partition(":")
    try:
        maker: _Maker = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"functional.term = {name!r} cannot be imported: {error}") from None
    return maker


def _arguments(maker: _Maker) -> list[str]:
    """The names of the arguments that a table may give."""
    parameters = inspect.signature(maker).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [name for name in named if name not in _NO_KEYS]


def _span(t_end: float, steady_residual: float | None = None) -> tuple[float, float | None]:
    """The criteria for the end of a flow, checked before the run starts."""
    steady = None if steady_residual is None else positive("steady_residual", steady_residual)
    return positive("t_end", t_end), steady


def _call(where: str, maker: _Maker, given: Mapping[str, Any], *first: Any, **more: Any) -> Any:
    """Call a maker with the keys of a table; wrong keys or types raise a ValueError."""
    try:
        inspect.signature(maker).bind(*first, **given, **more)
    except TypeError as error:
        keys = ", ".join(_arguments(maker))
        raise ValueError(f"[{where}]: {error}; its keys are {keys}") from None
    try:
        return maker(*first, **given, **more)
    except TypeError as error:  # a value of the wrong type, which the message names
        raise ValueError(str(error)) from error


def _check(what: str, found: Iterable[str], known: Sequence[str], where: str = "") -> None:
    for name in found:
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}{where}{_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message: the probable intention, or all possibilities."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(known)}"
