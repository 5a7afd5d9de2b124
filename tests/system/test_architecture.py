"""The house rules that a machine can keep: who may import whom, what an import costs, how long a file may be."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "jaxkd"
FILES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [p for p in sorted(ROOT.rglob("*.py")) if p.relative_to(ROOT).parts[0] in ("jaxkd", "experiments")]
FLOORS = (
    {"types", "keys", "labels", "files", "patterns", "kernels"},
    {"numerics", "boxes", "augment", "parallel", "data", "testing"},
    {"losses", "metrics", "models", "train", "runs"},
    {"objectives", "cache", "pytorch", "reports", "deploy"},
    {"experiment"},
    {"methods", "commands"},
)
"""The rooms (folders, or files beside them) of each floor, the ground first."""

RESERVED = {
    "flax.linen": ("models",),
    "flax.nnx": ("models",),
    "orbax": ("runs/checkpoint.py",),
    "tensorflow_datasets": ("data/readers",),
    "grain": ("data/pipeline.py",),
    "array_record": ("cache/shards.py", "data/readers"),
    "matplotlib": ("reports",),
}
"""Library -> the only places that may import it."""


def imported(path, package=PACKAGE):
    """Dotted names of everything that a file imports, wherever in the file it does; modules where they are files."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if module_file(name, package) or not node.module.startswith("jaxkd") else node.module


def module_file(name, package=PACKAGE):
    """The file of a module of the library, or None."""
    place = package.parent.joinpath(*name.split("."))
    return next((f for f in (place.with_suffix(".py"), place / "__init__.py") if f.exists()), None)


def room(path, package=PACKAGE):
    """First part of the path below the package; the package's own `__init__` is no room."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def floor(name):
    """Number of the floor that a room stands on, or None."""
    return next((i for i, rooms in enumerate(FLOORS) if name in rooms), None)


def offences(package=PACKAGE):
    """Each import that goes up or sideways, and each circle, in words."""
    files = [p for p in sorted(package.rglob("*.py")) if p != package / "__init__.py"]
    arrows = {}
    for path in files:
        seen = {module_file(name, package) for name in imported(path, package) if name.startswith("jaxkd.")}
        arrows[path] = {p for p in seen if p and p != package / "__init__.py"}
        for other in arrows[path]:
            own, its = room(path, package), room(other, package)
            if own != its and floor(its) >= floor(own):
                yield f"{path.relative_to(package)} (floor {floor(own) + 1}) imports {its} (floor {floor(its) + 1})"
    done, trail = set(), []

    def walk(path):
        if path in trail:
            yield " -> ".join(str(p.relative_to(package)) for p in [*trail[trail.index(path) :], path])
        elif path not in done:
            trail.append(path)
            for other in sorted(arrows[path]):
                yield from walk(other)
            done.add(trail.pop())

    for path in files:
        yield from (f"a circle: {circle}" for circle in walk(path))


def test_imports_run_down_the_floors_and_never_in_a_circle():
    assert list(offences()) == []


@pytest.mark.parametrize(
    ("path", "line", "said"),
    [
        ("losses/maps.py", "from jaxkd.objectives.terms import pick", "losses/maps.py (floor 3) imports objectives"),
        ("losses/maps.py", "from jaxkd import train", "losses/maps.py (floor 3) imports train (floor 3)"),
        ("data/source.py", "from jaxkd.data.subsets import of_classes", "a circle: data/source.py -> data/subsets.py"),
        ("keys.py", "def late():\n    from jaxkd import losses", "keys.py (floor 1) imports losses (floor 3)"),
    ],
    ids=["upward", "sideways", "circle in a folder", "upward inside a function"],
)
def test_a_planted_import_is_found(tmp_path, path, line, said):
    package = tmp_path / "jaxkd"
    for file in FILES:
        place = package / file.relative_to(PACKAGE)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(file.read_text())
    (package / path).write_text((package / path).read_text() + f"\n\n{line}\n")
    assert any(said in offence for offence in offences(package))


def test_every_room_has_a_floor():
    for path in FILES:
        assert room(path) == "__init__" or floor(room(path)) is not None, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path):
    for name in imported(path):
        for library, places in RESERVED.items():
            if name == library or name.startswith(library + "."):
                allowed = any(path.is_relative_to(PACKAGE / place) for place in places)
                assert allowed, f"{path.name} imports {name}, which only {places} may"


BACK_ENDS = {"cpu", "gpu", "tpu", "cuda", "rocm"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_kernels_name_a_back_end(path):
    if room(path) == "kernels" or path == PACKAGE / "pytorch" / "pickles.py":  # PyTorch's own word for where it loads
        return
    for node in ast.walk(ast.parse(path.read_text())):
        named = isinstance(node, ast.Constant) and node.value in BACK_ENDS
        named |= isinstance(node, ast.keyword) and node.arg in BACK_ENDS
        assert not named, f"line {node.lineno or '?'} of {path.name} names a back end: put it into kernels"


def test_import_is_light():
    """`import jaxkd` starts no back end and pulls no heavy package; each part is there when it is asked for."""
    program = (
        "import sys, jaxkd\n"
        "heavy = ['flax', 'optax', 'orbax', 'tensorflow_datasets', 'tensorflow', 'grain', 'array_record']\n"
        "heavy += ['jax', 'matplotlib', 'sklearn', 'wandb']\n"
        "assert not [m for m in heavy if m in sys.modules], [m for m in heavy if m in sys.modules]\n"
        "jaxkd.data\n"
        "heavy = ['tensorflow_datasets', 'tensorflow', 'grain', 'array_record', 'sklearn']\n"
        "assert not [m for m in heavy if m in sys.modules], [m for m in heavy if m in sys.modules]\n"
        "source = jaxkd.data.open_source({'image': [[[[0.0]]]] * 4, 'label': [0, 1, 0, 1]})\n"
        "source = jaxkd.data.in_memory(jaxkd.data.few_labels(source, 1))\n"
        "assert not [m for m in heavy if m in sys.modules], [m for m in heavy if m in sys.modules]\n"
        "parts = [getattr(jaxkd, name) for name in jaxkd.__all__]\n"
        "assert 'tensorflow_datasets' not in sys.modules and 'matplotlib' not in sys.modules\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "assert jaxkd.__version__\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_room_is_a_part_of_the_library():
    program = "import jaxkd; print(*jaxkd.__all__)"
    parts = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert sorted(parts) == sorted({room(path) for path in FILES} - {"__init__"})


@pytest.mark.parametrize("folder", ["jaxkd", "experiments", "tests"])
def test_files_and_functions_stay_readable(folder):
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= 450, f"{path} is too long: split it"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                documented = node.body and ast.get_docstring(node, clean=False) is not None
                start = node.body[0].end_lineno if documented else node.lineno
                assert node.end_lineno - start <= 50, f"{path}: {node.name} is too long: split it"
        assert path == pathlib.Path(__file__) or not re.search(r"\b(TODO|FIXME|XXX)\b", text), path


def test_the_formatter_stays_on():
    places = [p for p in ROOT.rglob("*.py") if ".venv" not in p.parts and p != pathlib.Path(__file__)]
    off = [p for p in places for _ in re.findall(r"# fmt: (?:skip|off)", p.read_text())]
    assert len(off) <= 5, off


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (ROOT / "experiments").rglob("*.py") if "benchmarks" not in p.parts),
    ids=lambda p: str(p.relative_to(ROOT / "experiments")),
)
def test_experiments_can_be_read_in_one_sitting(path):
    assert path.read_text().count("\n") <= 160


def test_top_level_holds_nothing_else():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so nobody can say which files belong to the project")
    top = {name.split("/")[0] for name in listed.stdout.split()}
    assert top <= {".ci", ".gitignore", "LICENSE", "README.md", "experiments", "jaxkd", "pyproject.toml", "tests"}
