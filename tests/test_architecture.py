"""The structure that docs/architecture.md promises, checked on the source itself."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "charrnn"

PAGE = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (\d) \| `(\w+)/?`(\*?)", PAGE, re.M)  # level, module, star: may import torch
LEVEL = {module: int(level) for level, module, _ in ROWS} | {"__main__": 10}
USES_TORCH = {module for _, module, star in ROWS if star}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def noun(path: Path) -> str:
    """The module a file belongs to; a package is one module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_only: bool = False) -> list[str]:
    """Full names of what a file imports, those for type checkers aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in tree.body if top_only else ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=noun)
def test_a_module_imports_only_smaller_levels(path):
    """No cycles, and data flow one way."""
    here = noun(path)
    assert here in LEVEL, f"{here} has no row in the table of modules"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "charrnn" or parts[1] == "__version__":
            continue
        if here == "kernels" and parts[1] == "kernels":
            continue
        assert LEVEL[parts[1]] < LEVEL[here], f"{path.name} imports {name}"


def test_the_page_has_a_row_for_each_module_and_no_other():
    """docs/architecture.md is the map of what is there."""
    assert len(ROWS) == len({noun(path) for path in FILES} - {"__main__"})
    assert {module for _, module, _ in ROWS} == {noun(path) for path in FILES} - {"__main__"}


def test_functions_stay_short():
    """A function of more than 60 lines has two jobs; the training loop may have a few more."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                body = node.end_lineno - node.body[0].lineno + 1
                assert body <= 60, f"{path.name}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", FILES, ids=noun)
def test_only_some_modules_import_torch(path):
    """The rest stays quick to import."""
    if any(name.split(".")[0] == "torch" for name in imports(path, top_only=True)):
        assert noun(path) in USES_TORCH


@pytest.mark.parametrize("path", FILES, ids=noun)
def test_nothing_happens_at_import(path):
    """A module's top level holds a docstring, imports, definitions and constants only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in tree.body[1:]:
        guard = isinstance(node, ast.If) and re.search("TYPE_CHECKING|__main__", ast.dump(node.test))
        assert isinstance(node, allowed) or guard, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=noun)
def test_only_console_writes_to_the_terminal(path):
    """print, sys.stdout and sys.stderr are the console's."""
    if noun(path) in ("console", "cli"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        called = node.func if isinstance(node, ast.Call) else node
        assert not (isinstance(called, ast.Name) and called.id == "print"), f"{path.name}:{node.lineno}"
        assert not (isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr")), f"{path.name}:{node.lineno}"


def test_nothing_can_execute_what_a_file_holds():
    """No module imports a format that executes code, nor loads files by way of one: model files are inert."""
    words = re.compile(r"\b(pickle|marshal|shelve|joblib|dill)\b|torch\.(load|save)\b|np\.load\b|\beval\(|\bexec\(")
    formats = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "copyreg"}
    loaders = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("torch", "save"), ("np", "save")}
    for path in [*FILES, PACKAGE / "__init__.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        code = "\n".join(ast.unparse(node) for node in tree.body if not isinstance(node, ast.Expr))
        assert not words.search(code), path.name
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & formats, path.name
            elif isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in formats, path.name
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert (node.value.id, node.attr) not in loaders, path.name
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "__import__", "compile"), path.name


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "--help"], ["sample", "--help"], ["eval", "--help"], ["info", "--help"]],
    ids=" ".join,
)
def test_help_answers_without_torch(arguments):
    """Asking what the tool can do must not cost seconds."""
    assert_torch_free(arguments, code=0)


def test_sample_and_info_never_import_torch(tmp_path, monkeypatch):
    """Writing text on a CPU and looking a model up need no PyTorch."""
    from charrnn.config import ModelConfig
    from charrnn.model.file import save_model
    from tests.conftest import make_model_file

    (tmp_path / "checkpoints" / "a").mkdir(parents=True)
    config = ModelConfig(cell="gru", vocab_size=20, embedding_dim=4, hidden_size=8, num_layers=1)
    save_model(tmp_path / "checkpoints" / "a" / "model.safetensors", make_model_file(config))
    monkeypatch.chdir(tmp_path)
    assert_torch_free(["sample", "-n", "10"], code=0)
    assert_torch_free(["info"], code=0)
    assert_torch_free(["info", "a"], code=0)


def assert_torch_free(arguments, *, code):
    """Run a command in a fresh interpreter and look for torch among its modules."""
    script = (
        f"import sys; sys.argv = ['charrnn', *{arguments!r}]\n"
        "from charrnn.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code or 0\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == code, done.stderr.decode()
