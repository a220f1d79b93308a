"""The documentation site builds with warnings as errors, and loads nothing from the network."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPO

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="NOT RUN: the site cannot be built, install the extra [docs]")
    pytest.importorskip("material", reason="NOT RUN: the site cannot be built, install the extra [docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", "docs/site/mkdocs.yml"]
    nowhere = "http://127.0.0.1:9"  # nobody listens there
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "http_proxy": nowhere, "https_proxy": nowhere}
    built = subprocess.run(
        [*command, "--site-dir", str(folder)], cwd=REPO, env=environment, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    pages = {str(path.relative_to(REPO / "docs").with_suffix(".html")) for path in (REPO / "docs").rglob("*.md")}
    pages = {page.replace("README.html", "index.html") for page in pages}
    assert pages <= {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert not list(site.rglob("*.py"))


def test_the_site_loads_nothing_from_the_network(site: Path) -> None:
    address = r"[\"']?((?:https?:)?//[^\"' >]+)"
    loads = rf"<(?:script|img|iframe|source)[^>]+src={address}|<link[^>]+href={address}|url\(({address})"
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    foreign = {(path.name, found[0]) for path in files for found in re.finditer(loads, path.read_text("utf-8"))}
    assert {item for item in foreign if "canonical" not in item[1]} == set()


def test_the_diagrams_are_drawn_when_the_site_is_built(site: Path) -> None:
    pytest.importorskip("mmdr", reason="NOT RUN: diagrams stay code, install the extra [docs]")
    text = (site / "architecture.html").read_text("utf-8")
    assert text.count('<figure style="width: 100%"><svg') == (REPO / "docs/architecture.md").read_text("utf-8").count(
        "```mermaid"
    )
    ids = re.findall(r"<svg id=\"([^\"]+)\"", text)
    assert len(ids) == len(set(ids))
