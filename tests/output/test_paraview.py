"""ParaView itself, where it is installed, sees in the series what the solver had."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.recorded_runs import TIMES, Run, write_run

SCRIPT = Path(__file__).parents[1] / "paraview_read.py"
READERS = ["XDMFReader", "Xdmf3ReaderT", "Xdmf3ReaderS", "default"]
PVBATCH, XVFB = shutil.which("pvbatch"), shutil.which("xvfb-run")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write_run(tmp_path_factory.mktemp("paraview"), d=2)


@pytest.fixture(scope="module")
def seen(run: Run) -> Path:
    """The folder with what ParaView wrote, which starts slowly: once for all tests."""
    if PVBATCH is None:
        pytest.skip("no pvbatch (ParaView) on PATH")
    out = run.folder / "seen"
    out.mkdir()
    path = run.folder / "series.xdmf"
    words = [f"{reader}={path}" for reader in READERS]
    if XVFB is not None:
        words.append(f"picture={out / 'm.png'}")
    command = [*([XVFB, "-a"] if XVFB else []), PVBATCH, SCRIPT, out / "seen.json", *words]
    for _ in range(2):  # on a busy machine, the display is not always there in time
        job = subprocess.run(
            list(map(str, command)),
            # Its MPI and its Python are not those of this process.
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(out), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=50,
        )
        if job.returncode == 0:
            break
    assert job.returncode == 0, job.stdout + job.stderr
    return out


@pytest.mark.parametrize("reader", READERS)
def test_paraview_reads_what_the_solver_had(run: Run, seen: Path, reader: str) -> None:
    series = json.loads((seen / "seen.json").read_text())[reader]
    assert series["times"] == list(TIMES)
    for step, expected in zip(series["steps"], run.ranges, strict=True):
        assert set(expected) <= set(step["ranges"])
        for name, limits in expected.items():
            np.testing.assert_allclose(step["ranges"][name], limits, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(step["bounds"][:4], [-3.0, 3.0, -3.0, 3.0])


@pytest.mark.skipif(XVFB is None, reason="no xvfb-run on PATH")
def test_paraview_shows_the_density(seen: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    pixels = image.imread(seen / "m.png")[..., :3]
    assert pixels.shape == (240, 320, 3)
    # ParaView draws small values blue and large ones red; its background and its letters are grey.
    assert (pixels[..., 2] - pixels[..., 0] > 0.25).mean() > 0.1
    assert (pixels[..., 0] - pixels[..., 2] > 0.25).any()
