"""What the pages share: a page is one file that loads nothing and runs only its own script."""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from charrnn import __version__
from charrnn.text.characters import readable


def render_page(name: str, *, scripts: Sequence[str] = (), policy: str = "", **values: Any) -> str:
    """Render a page from its template, style sheet and script, and those that all pages share.

    scripts: files that its script needs besides the shared ones. policy: directives to add to the
    Content-Security-Policy, each ended by a semicolon.
    """
    import jinja2

    style = read_resource("base.css") + read_resource(f"{name}.css")
    script = "".join(map(read_resource, ("base.js", "reader.js", *scripts, f"{name}.js")))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(readable=readable, count=lambda number: f"{number:,}")
    return environment.get_template(f"{name}.html").render(
        version=__version__,
        policy=f"default-src 'none'; style-src {_policy_hash(style)}; script-src {_policy_hash(script)}; {policy}"
        "base-uri 'none'; form-action 'none'",
        style=Markup(style),
        script=Markup(script),
        **values,
    )


def read_resource(name: str) -> str:
    """Read a file of this folder."""
    return importlib.resources.files("charrnn.pages").joinpath(name).read_text(encoding="utf-8")


def _policy_hash(source: str) -> str:
    """Return how a Content-Security-Policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def json_for_script(data: Any) -> Markup:
    """Encode data as JSON that can stand in a script element."""
    code = json.dumps(data)  # only ASCII, so U+2028 is escaped
    return Markup(code.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
