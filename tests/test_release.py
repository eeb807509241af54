"""The program that prepares a release."""

import importlib.util
import shutil
import tomllib
from pathlib import Path

import pytest

from charrnn import __version__

ROOT = Path(__file__).parent.parent
ADDRESS = "https://example.org/someone/charrnn"


@pytest.fixture
def release(tmp_path):
    """The program in a copy of the files that it reads, with a changelog whose version is released."""
    for name in (".ci/release.py", "README.md", "pyproject.toml", "charrnn/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    changelog = (
        f"# Changelog\n\n## {__version__} (2030-01-01)\n\n### Train\n\n- [New](docs/a.md)\n\n## 0.0.1\n\n- Old\n"
    )
    (tmp_path / "CHANGELOG.md").write_text(changelog)
    spec = importlib.util.spec_from_file_location("release", tmp_path / ".ci/release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notes_are_one_versions_section(release, tmp_path, capsys):
    """With links that lead into the repository at the tag."""
    tag = f"v{__version__}"
    release.main(tag, ADDRESS)
    assert capsys.readouterr().out == f"### Train\n\n- [New]({ADDRESS}/blob/{tag}/docs/a.md)\n"
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"({ADDRESS}/raw/{tag}/docs/terminal.png)" in readme
    assert f"({ADDRESS}/blob/{tag}/CONTRIBUTING.md)" in readme
    assert "](docs/" not in readme
    urls = tomllib.loads((tmp_path / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert urls["Changelog"] == f"{ADDRESS}/blob/{tag}/CHANGELOG.md"


def test_links_elsewhere_stay(release):
    """And links inside the page."""
    page = "[a](https://b.c/d) [e](#f) <g@h>"
    assert release.make_absolute(page, ADDRESS, "v1") == page


@pytest.mark.parametrize(
    ("tag", "heading", "message"),
    [
        ("v9.9.9", __version__, "is not v"),
        (f"v{__version__}", f"{__version__}0", "no section"),
        (f"v{__version__}", f"{__version__} (unreleased)", "unreleased"),
    ],
)
def test_an_unready_release_is_refused(release, tmp_path, tag, heading, message):
    """Nothing is changed then."""
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {heading}\n\n- New\n")
    before = (tmp_path / "README.md").read_bytes()
    with pytest.raises(SystemExit, match=message):
        release.main(tag, ADDRESS)
    assert (tmp_path / "README.md").read_bytes() == before
