"""The README's script runs as it stands."""

import re
from pathlib import Path

import numpy as np

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_ten_lines_run(capsys):
    (script,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    exec(compile(script, README.name, "exec"), names)
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 22
    certificate = re.fullmatch(r"F = (\S+)  gap ≤ (\S+)  residual (\S+)", lines.pop())
    assert certificate is not None
    energies = [float(line.split()[1]) for line in lines]
    assert np.all(np.diff(energies) < 0)
    assert float(certificate[1]) < energies[-1]
    assert float(certificate[2]) <= 1e-10
    assert names["state"].t == 1.0
