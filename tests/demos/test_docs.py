"""The documentation is true: its scripts run, and what it names is there.

Building the site, and its links, is for test_site.py.
"""

import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import fem_mf
from fem_mf.flows.tableau import SCHEMES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(p for p in DOCS.rglob("*.md") if "_build" not in p.parts),
]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for folder in ("fem_mf", "demos")
    for path in sorted((ROOT / folder).rglob("*.py"))
)
LIMIT = 200_000  # bytes of a picture


def blocks(page, language):
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT[page], re.DOTALL | re.MULTILINE)


SCRIPTS = [page for page in TEXT if blocks(page, "python")]


@pytest.fixture(autouse=True)
def schemes():
    """What a page adds to the schemes is gone afterwards."""
    before = dict(SCHEMES)
    yield
    SCHEMES.clear()
    SCHEMES.update(before)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the python blocks of a page, in order, in one namespace and an empty folder."""
    for name in ("meshes", "demos"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["script.py"])

    def run(page):
        names = {"__name__": "__main__"}
        for number, block in enumerate(blocks(page, "python"), 1):
            exec(compile(block, f"{page}, block {number}", "exec"), names)
        return names

    yield run
    # Pages show how to set up the log; the tests after this one want to see it as it was.
    for handler in list((logger := fem_mf.mpi.logging.getLogger("fem_mf")).handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel("NOTSET")


@pytest.mark.timeout(300)  # seconds on an idle machine; a page is as long as its scripts
@pytest.mark.parametrize("page", [page for page in SCRIPTS if page != "README.md"])
def test_the_scripts_of_a_page_run(page, run):
    run(page)


def test_the_ten_lines_of_the_readme_run(run, capsys):
    names = run("README.md")
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 22
    certificate = re.fullmatch(r"F = (\S+)  gap ≤ (\S+)  residual (\S+)", lines.pop())
    assert certificate is not None
    energies = [float(line.split()[1]) for line in lines]
    assert np.all(np.diff(energies) < 0)
    assert float(certificate[1]) < energies[-1]
    assert float(certificate[2]) <= 1e-10
    assert names["state"].t == 1.0


def commands():
    """Every command line of the sh blocks, and of inline code that begins with python or make."""
    for page in TEXT:
        lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
        inline = re.findall(r"`((?:\S*bin/)?(?:python|make|mpirun) [^`]*)`", TEXT[page])
        for line in [*lines, *inline]:
            words = line.split("  #")[0].replace("\n", " ")
            if words.strip() and not words.lstrip().startswith("#"):
                yield page, words.strip()


@pytest.mark.parametrize("page", sorted({page for page, _ in commands()}))
def test_commands_name_what_exists(page):
    for own, line in commands():
        if own == page:
            check_command(line)


def check_command(line):
    """Its targets, its file or module, and its options exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z][a-z0-9-]*)", line):
        assert re.search(rf"^{target}:|^\.PHONY:.* {target}\b", makefile, re.MULTILINE), target
    program = re.search(r"python (?:-m )?(\S+)", line)
    if program is None:
        return
    name, rest = program[1], line[program.end() :]
    options = re.findall(r"(?<=\s)--([a-z][a-z-]*)", rest)
    if name in {"script.py", "-c", "venv", "pip"} or name.startswith(".venv/bin/"):
        return
    if name.endswith(".py"):
        path = ROOT / name
        assert path.is_file(), f"{name} does not exist"
    else:
        module = importlib.util.find_spec(name)
        assert module is not None, f"no module {name}"
        path = Path(module.origin)
        path = path.with_name("__main__.py") if path.name == "__init__.py" else path
    if path.parent.name == "demos":
        # `parse` makes an option of every parameter of main.
        main = importlib.import_module(path.stem).main
        known = {k.replace("_", "-") for k in inspect.signature(main).parameters}
    else:
        files = [path]
        if name == "fem_mf":  # its command plot has the options of fem_mf.plotting
            files.append(ROOT / "fem_mf/plotting/__main__.py")
        text = "".join(file.read_text(encoding="utf-8") for file in files)
        known = set(re.findall(r'"--([a-z-]+)"', text))
    for option in options:
        assert (known | {"help"}) & {option, option.removeprefix("no-")}, option


def test_options_of_petsc_have_prefixes_that_exist():
    known = set(re.findall(r'"(fem_mf_[a-z]+_)"', SOURCES))
    for page, text in TEXT.items():
        cited = set(re.findall(r"\b(fem_mf_[a-z]+_)(?=[a-z`.])", text)) - {"fem_mf_"}
        assert cited <= known, (page, cited - known)


def test_the_table_of_equations_names_code_that_cites_them():
    """Each name of the table exists, and the file it is in cites the equation."""
    section = TEXT["docs/theory.md"].split("## Where each equation is")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z]\d.*?) \| (.*?) \| (.*?) \|$", section, re.MULTILINE)
    named = {name for names, *_ in rows for name in names.split(", ")}
    letters = {"E": 3, "F": 3, "D": 7, "W": 3, "J": 3, "L": 1, "C": 1}
    assert named == {f"{c}{n}" for c, most in letters.items() for n in range(1, most + 1)}
    for names, forms, code in rows:
        for dotted in re.findall(r"`([\w.]+)`", forms + code):
            module, _, attribute = f"fem_mf.{dotted}".rpartition(".")
            found = getattr(importlib.import_module(module), attribute)
            assert callable(found), dotted
        files = [re.findall(r"`([\w.]+)\.\w+`", code)[0].replace(".", "/") + ".py", "equations.py"]
        text = "".join((ROOT / "fem_mf" / file).read_text(encoding="utf-8") for file in files)
        assert any(name in text for name in names.split(", ")), names


def test_equations_cited_are_on_the_theory_page():
    theory = TEXT["docs/theory.md"]
    anchors = re.findall(r'<a id="([^"]+)"></a>', theory)
    assert len(set(anchors)) == len(anchors)
    everything = "\n".join([SOURCES, *TEXT.values()])
    cited = set(re.findall(r"\b[EFDWJLCX][1-9]\b", everything))
    assert {"E1", "D2", "C1", "X6"} <= cited
    assert cited <= set(anchors), cited - set(anchors)
    sections = set(re.findall(r"theory §([1-9])", everything))
    assert {f"section-{n}" for n in sections} <= set(anchors)
    for number in range(1, 10):
        assert re.search(rf'<a id="section-{number}"></a>\n\n## {number}\. ', theory), number


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(path.read_text() for path in sorted((DOCS / "api").glob("*.rst")))
    for kind in (r"auto(?:class|function|exception):: fem_mf\.", r"  ~fem_mf\."):
        documented = re.findall(rf"{kind}(\w+)$", reference, re.MULTILINE)
        assert len(set(documented)) == len(documented)
        assert set(documented) == set(fem_mf.__all__)


def test_links_lead_somewhere():
    no_prose = re.compile(r"\$\$.*?\$\$|\$[^$]+\$|^```.*?^```", re.DOTALL | re.MULTILINE)
    for page, text in TEXT.items():
        for target in re.findall(r"\]\(([^)\s]+)\)", no_prose.sub("", text)):
            if not re.match(r"https?:|#", target):
                file = (ROOT / page).parent / target.partition("#")[0]
                assert file.exists(), f"{page}: {target}"


def test_pictures_are_small_and_used():
    pictures = sorted((DOCS / "images").glob("*.*"))
    everything = "\n".join(TEXT.values())
    for picture in pictures:
        assert picture.stat().st_size <= LIMIT, f"{picture.name}: {picture.stat().st_size} bytes"
        assert f"images/{picture.name}" in everything, f"{picture.name} is shown nowhere"
