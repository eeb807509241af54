"""Prepare a release: check its tag, put the repository's address into the metadata, print the changelog's notes.

Called as `python .ci/release.py v0.1.0 https://host/owner/name` in a checkout that is built next and thrown away.
The address is known only where the release is made, so README's links are relative and pyproject.toml has no URLs.
"""

import re
import sys
from pathlib import Path


def find_notes(changelog: str, version: str) -> str:
    """Return what a changelog says about a version, without its heading. Raises SystemExit if that isn't ready."""
    sections = re.split(r"^## ", changelog, flags=re.M)
    section = next((section for section in sections if re.match(rf"{re.escape(version)}(\s|$)", section)), None)
    if section is None:
        raise SystemExit(f"CHANGELOG.md has no section {version}")
    heading, _, notes = section.partition("\n")
    if "unreleased" in heading:
        raise SystemExit(f"CHANGELOG.md still says '{heading}'; write the date instead")
    return notes.strip() + "\n"


def make_absolute(page: str, address: str, tag: str) -> str:
    """Make a page's relative links absolute: images to their bytes, other files to their pages."""
    return re.sub(
        r"(!?)\[([^]]*)\]\((?![a-z]+:|#)([^)]+)\)",
        lambda link: f"{link[1]}[{link[2]}]({address}/{'raw' if link[1] else 'blob'}/{tag}/{link[3]})",
        page,
    )


def main(tag: str, address: str) -> None:
    """Change README.md and pyproject.toml; print the notes."""
    root = Path(__file__).parent.parent
    (version,) = re.findall(r'^__version__ = "(.*)"$', (root / "charrnn/__init__.py").read_text("utf-8"), re.M)
    if tag != f"v{version}":
        raise SystemExit(f"the tag {tag} is not v{version}, the version in charrnn/__init__.py")
    notes = find_notes((root / "CHANGELOG.md").read_text("utf-8"), version)
    readme, project = root / "README.md", root / "pyproject.toml"
    readme.write_text(make_absolute(readme.read_text("utf-8"), address, tag), "utf-8")
    urls = {"Source": address, "Issues": f"{address}/issues", "Changelog": f"{address}/blob/{tag}/CHANGELOG.md"}
    table = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    project.write_text(f"{project.read_text('utf-8')}\n[project.urls]\n{table}", "utf-8")
    print(make_absolute(notes, address, tag), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
