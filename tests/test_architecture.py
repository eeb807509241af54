"""The structure that docs/architecture.md describes, checked on the source itself."""

import ast
import graphlib
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from charrnn.files import CHECKPOINTS_VARIABLE

PACKAGE = Path(__file__).parent.parent / "charrnn"
PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")

# A file imports only from rooms above its own.
ROOMS = (
    ("errors", "events", "files"),
    ("numerics",),
    ("kernels",),
    ("config", "counters", "hardware", "distributed"),
    ("text",),
    ("data",),
    ("model",),
    ("constraints",),
    ("sampling",),
    ("evaluation",),
    ("inspection",),
    ("runs",),
    ("training",),
    ("pages",),
    ("precompile", "signals", "api"),
    ("terminal",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}

# Only these import PyTorch at their top level.
USES_TORCH = {
    "model": {"layers", "network", "gradients", "learner"},
    "evaluation": {"adaptation"},
    "training": {"loop", "optimizer", "saving", "state"},
}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
INITS = sorted(path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE)
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def top(path: Path) -> str:
    """Return the room, or the top-level file, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def place(path: Path, node: ast.AST | None = None) -> str:
    """Return a file's path from the repository's root, with a node's line."""
    line = f":{node.lineno}" if node else ""
    return f"{path.relative_to(PACKAGE.parent)}{line}"


def imports(path: Path, *, top_only: bool = False) -> list[tuple[ast.AST, str]]:
    """Return the full names that a file imports, with the statement. top_only: not in functions, not for types only."""
    tree = TREES[path]
    found: list[tuple[ast.AST, str]] = []
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path, node)}: write the import as absolute"
            found += [(node, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def imported_file(name: str) -> Path | None:
    """Return the file of the package that a full name comes from; None for other packages and for a package itself."""
    parts = name.split(".")
    while parts[0] == "charrnn" and len(parts) > 1:
        path = PACKAGE.joinpath(*parts[1:]).with_suffix(".py")
        if path.exists():
            return path
        parts.pop()
    return None


def test_every_file_is_in_a_room():
    """A new top-level file or folder needs a row in ROOMS and on the page."""
    lost = [place(path) for path in FILES if top(path) not in LEVEL]
    assert not lost, f"{', '.join(lost)}: add it to ROOMS in this test and to the table of docs/architecture.md"


def test_the_page_names_every_room():
    """Each room and each top-level file has a row in docs/architecture.md."""
    rows = "\n".join(re.findall(r"^\| `.*?\|", PAGE, re.M))
    names = {f"{top(path)}.py" if path.parent == PACKAGE else f"{top(path)}/" for path in FILES} - {"__main__.py"}
    missing = sorted(name for name in names if f"`{name}`" not in rows)
    assert not missing, f"docs/architecture.md has no row for {', '.join(missing)}"


def test_a_file_imports_only_from_rooms_above():
    """The one rule."""
    broken = []
    for path in FILES:
        for node, name in imports(path):
            target = imported_file(name)
            if target and top(target) in LEVEL and LEVEL[top(target)] > LEVEL.get(top(path), 0):
                broken.append(f"{place(path, node)} imports {name}, but {top(target)} is below {top(path)}")
    assert not broken, "; ".join(broken)


def test_imports_inside_a_room_have_no_cycles():
    """Files of one room may import one another in one direction, for type checkers as well."""
    rooms: dict[int, dict[Path, set[Path]]] = defaultdict(lambda: defaultdict(set))
    for path in FILES:
        for _, name in imports(path):
            target = imported_file(name)
            if target and LEVEL.get(top(target)) == LEVEL.get(top(path)) and target != path:
                rooms[LEVEL[top(path)]][path].add(target)
    for graph in rooms.values():
        try:
            list(graphlib.TopologicalSorter(graph).static_order())
        except graphlib.CycleError as error:
            pytest.fail("imports in a cycle: " + " -> ".join(place(path) for path in reversed(error.args[1])))


def test_room_inits_are_empty():
    """Importing a room imports nothing."""
    full = [place(path) for path in INITS if path.read_bytes()]
    assert not full, f"{', '.join(full)} must be empty"


def test_a_room_has_at_most_ten_files():
    """A larger room must be split."""
    for init in INITS:
        names = [path.name for path in init.parent.glob("*.py") if path != init]
        assert len(names) <= 10, f"charrnn/{init.parent.name}/ has {len(names)} files"


def test_functions_stay_short():
    """A function's code, without its docstring, is at most 60 lines long."""
    long = []
    for path in FILES:
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.FunctionDef):
                code = node.body[1:] if ast.get_docstring(node) is not None else node.body
                length = node.end_lineno - code[0].lineno + 1 if code else 0
                if length > 60:
                    long.append(f"{place(path, node)} {node.name} has {length} lines")
    assert not long, "; ".join(long)


def test_only_some_files_import_torch():
    """The others are quick to import."""
    importing = {
        place(path) for path in FILES if any(name.split(".")[0] == "torch" for _, name in imports(path, top_only=True))
    }
    allowed = {f"charrnn/{room}/{name}.py" for room, names in USES_TORCH.items() for name in names}
    new, gone = sorted(importing - allowed), sorted(allowed - importing)
    assert not new, f"{', '.join(new)}: import torch inside the functions that need it"
    assert not gone, f"{', '.join(gone)}: imports torch no more, so remove it from USES_TORCH"


def test_nothing_happens_at_import():
    """A module's top level has a docstring, imports, definitions and constants only."""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for path in FILES:
        tree = TREES[path]
        assert ast.get_docstring(tree), f"{place(path)} has no docstring"
        for node in tree.body[1:]:
            is_guard = isinstance(node, ast.If) and re.search("TYPE_CHECKING|__main__", ast.dump(node.test))
            assert isinstance(node, allowed) or is_guard, f"{place(path, node)} runs code at import"


def test_only_the_command_line_writes_to_the_terminal():
    """print, sys.stdout and sys.stderr are used in terminal/ and cli/ only."""
    for path in FILES:
        if top(path) in ("terminal", "cli"):
            continue
        for node in ast.walk(TREES[path]):
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            is_stream = isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")
            assert not is_print, f"{place(path, node)} calls print"
            assert not is_stream, f"{place(path, node)} uses sys.{node.attr}"


def test_nothing_can_execute_what_a_file_contains():
    """No module imports a format that executes code, nor loads files with one: model files are inert."""
    words = re.compile(r"\b(pickle|marshal|shelve|joblib|dill)\b|torch\.(load|save)\b|np\.load\b|\beval\(|\bexec\(")
    formats = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "copyreg"}
    loaders = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("torch", "save"), ("np", "save")}
    for path in [*FILES, PACKAGE / "__init__.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        code = "\n".join(ast.unparse(node) for node in tree.body if not isinstance(node, ast.Expr))
        assert not words.search(code), place(path)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & formats, place(path, node)
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in formats, place(path, node)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in loaders, place(path, node)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__", "compile"), place(path, node)


# what commands import, in a fresh interpreter

RUN_COMMANDS = """
import os, sys
from charrnn.cli.main import main

for words, expected in {commands!r}:
    sys.argv = ["charrnn", *words]
    try:
        main()
    except SystemExit as end:
        assert (end.code or 0) == expected, (words, end.code)
    for name in {forbidden!r}:
        assert name not in sys.modules, f"charrnn {{' '.join(words)}} imports {{name}}"
"""


def assert_not_imported(forbidden, commands, **environment):
    """Run commands, each with its expected exit code, in one fresh interpreter; none may import these modules."""
    script = RUN_COMMANDS.format(commands=commands, forbidden=forbidden)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, done.stderr.splitlines()[-1]
    return done.stdout


def test_help_and_usage_errors_import_neither_torch_nor_numba_nor_numpy():
    """`--help`, `--version` and a usage error must answer at once."""
    helps = [([], 2), (["--help"], 0), (["--version"], 0)]
    helps += [([command, "--help"], 0) for command in ("train", "sample", "eval", "info", "export")]
    errors = [(["nonsense"], 2), (["train"], 2), (["sample", "--nonsense"], 2), (["eval", "--worst", "x"], 2)]
    assert_not_imported(["torch", "numba", "numpy"], helps + errors)


def test_completion_imports_neither_torch_nor_numba_nor_numpy(tmp_path):
    """So does completion in the shell, of options and of runs."""
    (tmp_path / "poems").mkdir()
    (tmp_path / "poems" / "model.safetensors").touch()
    shell = {"_CHARRNN_COMPLETE": "complete_bash", "COMP_CWORD": "3", CHECKPOINTS_VARIABLE: str(tmp_path)}
    for words, answer in (("charrnn train x --emb", "--embedding-dim\n"), ("charrnn sample -m ", "poems\n")):
        assert assert_not_imported(["torch", "numba", "numpy"], [([], 0)], **shell, COMP_WORDS=words) == answer


@pytest.fixture
def model_home(tmp_path, monkeypatch):
    """A current folder with a model and a text of its characters."""
    from charrnn.config import ModelConfig
    from charrnn.model.file import save_model
    from tests.conftest import make_model_file

    (tmp_path / "checkpoints" / "a").mkdir(parents=True)
    config = ModelConfig(cell="gru", vocab_size=20, embedding_dim=4, hidden_size=8, num_layers=1)
    save_model(tmp_path / "checkpoints" / "a" / "model.safetensors", make_model_file(config))
    (tmp_path / "text.txt").write_text("".join(map(chr, range(33, 53))) * 40, encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def test_sample_info_and_export_import_neither_torch_nor_what_compiles(model_home):
    """Drawing text, or describing a model or its page, needs no PyTorch; a kernel in the cache needs no compiler."""
    commands = [(["info"], 0), (["info", "a"], 0), (["sample", "-n", "10"], 0), (["export"], 0)]
    commands += [(["sample", "-N", "2", "--unique", "--best", "1"], 0)]
    commands += [(["sample", "--new"], 3)]  # which looks for the training text
    assert_not_imported(["torch", "numba.np.linalg"], commands)


def test_eval_does_not_import_torch(model_home):
    """Only a model that adapts, and a GPU, need it."""
    options = ([], ["--per-line"], ["--inside"], ["--html", "page.html"], ["-m", "a"])
    assert_not_imported(["torch"], [(["eval", "-m", "a", "text.txt", *more], 0) for more in options])
