"""The house rules that a machine can keep: who may import whom, what an import costs, how long a file may be."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "jaxkd"
FILES = sorted(PACKAGE.rglob("*.py"))
# Library -> the only places that may import it.
RESERVED = {
    "flax.linen": ("models",),
    "flax.nnx": ("models",),
    "orbax": ("checkpoint.py",),
    "tensorflow_datasets": ("data",),
    "grain": ("data",),
    "array_record": ("data",),
    "matplotlib": ("report.py",),
}
# Lower rooms know nothing of higher ones.
LAYERS = (
    {"types"},
    {"convolution"},
    {"numerics"},
    {"losses"},
    {
        "objectives",
        "models",
        "meshes",
        "parallel",
        "processes",
        "devices",
        "metrics",
        "augment",
        "optimizers",
        "testing",
        "accumulation",
        "inventory",
        "starting",
        "work",
    },
    {"train"},
    {"gradients", "students", "dispatch"},
    {"checkpoint", "data", "pytorch"},
    {"cli", "clock", "watch", "loop", "log", "run", "report"},
    {"stage"},
    {"caching"},
)


def imported(path):
    """Dotted names of everything that a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(path):
    """First part of the path below the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def level(name):
    """Number of the layer that a room belongs to."""
    return next((i for i, layer in enumerate(LAYERS) if name in layer), None)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way_and_libraries_stay_in_their_rooms(path):
    own = room(path)
    for name in imported(path):
        for library, rooms in RESERVED.items():
            if name == library or name.startswith(library + "."):
                allowed = any(path.is_relative_to(PACKAGE / r) for r in rooms)
                assert allowed, f"{path.name} imports {name}, which only {rooms} may"
        if name.startswith("jaxkd.") and own != "__init__":
            other = name.split(".")[1]
            if level(other) is not None:
                assert level(other) <= level(own), f"{path.name} imports {name}, which stands above it"


def test_every_room_has_a_place_in_the_layers():
    for path in FILES:
        assert room(path) == "__init__" or level(room(path)) is not None, path


@pytest.mark.parametrize("path", sorted((PACKAGE / "losses").glob("*.py")), ids=lambda p: p.stem)
def test_losses_know_nothing_but_types_and_numerics(path):
    if path.stem == "__init__":
        return  # which gathers them
    for name in imported(path):
        allowed = not name.startswith("jaxkd.") or name.startswith(("jaxkd.types", "jaxkd.numerics"))
        assert allowed, f"{path.name} imports {name}"


def test_import_is_light():
    """`import jaxkd` pulls neither data sets, nor checkpoints, nor plots, and starts no back end."""
    program = (
        "import sys, jaxkd\n"
        "heavy = ['orbax', 'tensorflow_datasets', 'tensorflow', 'grain', 'array_record']\n"
        "heavy += ['matplotlib', 'sklearn', 'wandb']\n"
        "assert not [m for m in heavy if m in sys.modules], [m for m in heavy if m in sys.modules]\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= 450, f"{path.name} is too long: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documented = node.body and isinstance(node.body[0], ast.Expr)
            start = node.body[0].end_lineno if documented else node.lineno
            assert node.end_lineno - start <= 50, f"{path.name}: {node.name} is too long: split it"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.stem)
def test_experiments_can_be_read_in_one_sitting(path):
    assert path.read_text().count("\n") <= 120


def test_top_level_holds_nothing_else():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so nobody can say which files belong to the project")
    top = {name.split("/")[0] for name in listed.stdout.split()}
    assert top <= {".ci", ".gitignore", "LICENSE", "README.md", "experiments", "jaxkd", "pyproject.toml", "tests"}
