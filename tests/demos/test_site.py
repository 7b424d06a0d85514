"""`make docs` builds without a warning, and the site is complete without a network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # A proxy that is not there: whatever asks for another host fails.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", ROOT / "docs", folder],
        env=os.environ | nowhere,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_site_is_complete(site):
    theory = (site / "theory.html").read_text(encoding="utf-8")
    assert theory.count('class="math') > 100
    assert (site / "_static" / "tex-svg.js").stat().st_size > 1_000_000
    assert re.search(r'<script[^>]* src="_static/tex-svg.js', theory)
    for name in ("E1", "D2", "C1", "X6", "section-9"):
        assert f'id="{name}"' in theory
    flows = (site / "api" / "flows.html").read_text(encoding="utf-8")
    assert 'href="../theory.html#D2"' in flows
    assert 'id="fem_mf.SchrodingerFlow"' in flows


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_local_links_lead_somewhere(site):
    ids = {}
    for page in site.rglob("*.html"):
        ids[page] = set(re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8")))
    for page in ids:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            if re.match(r"[a-z]+:|#$", link):
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name.partition("?")[0]).resolve() if name else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor and target.suffix == ".html":
                assert anchor in ids[target], f"{page.name}: {link}"
