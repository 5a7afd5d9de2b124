"""Every number of a command line has a domain, in every experiment, and is checked before anything starts."""

import dataclasses
import math
import pathlib
import runpy
import sys
import types
import typing

import pytest

from jaxkd import experiment
from jaxkd.experiment import TRAINING, flag
from jaxkd.experiment.comparison import ComparisonConfig
from jaxkd.experiment.domains import COUNT, DECAY, FRACTION, NON_NEGATIVE, POSITIVE, SEED, check_domains, declaration

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
FILES = ("digits", "vision/image_kd", "vision/transfer", "vision/imagenet", "cifar100/run", "cifar100/every_method")
FILES += ("vision/faces", "vision/xrays")
FILES += ("audio/digit_strings", "audio/other_language", "audio/spoken_digits")
FILES += ("benchmarks/crash", "benchmarks/loop_overhead")
FILES += ("graph/traffic",)
FILES += ("tabular/recommendation",)
FILES += ("text/embeddings", "text/entities", "text/extraction", "text/sentiment", "text/transfer")
FILES += ("tabular/tables",)
FILES += ("detection/cells", "detection/masks")
FILES += ("methods/foundation",)
FILES += ("methods/adapters", "methods/domains", "methods/tasks")
FILES += ("methods/conflicts", "methods/schedules")
FILES += ("methods/modalities", "methods/several_teachers")
FILES += ("methods/discriminator", "methods/stages")
FILES += ("methods/weights",)
FILES += ("methods/exits", "methods/mean_teacher", "methods/no_teacher")
FILES += ("methods/robust",)


def configurations():
    """All dataclasses of flags: those of the library, and those of the experiments."""
    yield from (
        experiment.Config,
        experiment.ImageConfig,
        experiment.SweepConfig,
        experiment.Devices,
        experiment.TextConfig,
        ComparisonConfig,
    )
    path = list(sys.path)
    for name in FILES:
        file = FOLDER / f"{name}.py"
        sys.path.insert(0, str(file.parent))
        found = runpy.run_path(str(file))
        sys.path[:] = path
        yield from (found[kind] for kind in ("Config", "RunConfig") if kind in found)


ALL = list(configurations())


def kinds_of(hint):
    """Types that a value of this hint, or of its members, can have."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple):
        return {kind for part in typing.get_args(hint) for kind in kinds_of(part)}
    return {hint} if isinstance(hint, type) else set()


def numbers(config):
    """Fields that hold numbers, and whether a tuple of them."""
    hints = typing.get_type_hints(config)
    return [f.name for f in dataclasses.fields(config) if kinds_of(hints[f.name]) & {int, float}]


def test_all_experiments_are_here():
    declared = {
        p.relative_to(FOLDER).with_suffix("").as_posix() for p in FOLDER.rglob("*.py") if "flag(" in p.read_text()
    }
    assert declared == set(FILES)


@pytest.mark.parametrize("config", ALL, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_number_has_a_domain(config):
    check_domains(config())
    names = numbers(config)
    assert names or config is experiment.Devices
    for name in names:
        domain = declaration(config, name)["domain"]
        assert domain is not None, f"{config}: {name} has no domain"
        for value in (math.nan, math.inf, -math.inf, -1, -1e-9, 2**63 + 0.0, -(2**63)):
            if value == 2.0**63 and not domain.whole and domain.high > value:
                continue
            given = (value,) if isinstance(getattr(config(), name), tuple) else value
            with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')} is .*: give .*[.]$"):
                check_domains(dataclasses.replace(config(), **{name: given}))


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (POSITIVE, (1e-30, 3e38), (0, 1e-46, 1e39)),
        (NON_NEGATIVE, (0, 1e-46), (-1e-46, 1e39)),
        (FRACTION, (0, 0.5, 1), (1.0001,)),
        (DECAY, (0, 0.9999), (1, 0.9999999)),
        (COUNT, (1, 2**31 - 1), (0, 1.5, 2**31)),
        (SEED, (0, 2**31 - 2), (2**31 - 1, 0.5)),
    ],
)
def test_bounds(domain, inside, outside):
    assert all(map(domain.holds, inside))
    assert not any(map(domain.holds, outside))


def test_lists_and_texts():
    kind = dataclasses.make_dataclass(
        "Lists",
        [
            ("widths", tuple, flag((1,), "", TRAINING, COUNT)),
            ("grid", tuple, ()),
            ("out", str, "x"),
            ("free", float, 1.0),
        ],
    )
    check_domains(kind())
    for values, message in (
        ({"widths": ()}, "--widths is empty"),
        ({"widths": (1, 0)}, "--widths is 0: give at least 1"),
        ({"grid": ("",)}, "--grid is an empty text"),
        ({"out": ""}, "--out is an empty text"),
        ({"free": math.nan}, "--free is nan: give a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            check_domains(kind(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_processes": 2}, "--num-processes is given but no --coordinator"),
        ({"process_id": 0}, "--process-id is given but no --coordinator"),
        ({"coordinator": "a:1", "num_processes": 2, "process_id": 5}, "--process-id is 5 but --num-processes 2"),
        ({"peer_timeout": 0.0}, "--peer-timeout is 0.0: give a number above 0"),
    ],
)
def test_flags_of_processes_that_contradict_each_other(values, message):
    with pytest.raises(ValueError, match=message):
        experiment.Devices(**values).start()


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("vision/transfer", {"teacher": "vit"}, "there is no network 'vit'"),
        ("vision/transfer", {"students": ("alone", "alone")}, "--students has 'alone' twice"),
        ("vision/image_kd", {"grid": ("alpha=2",)}, "alpha in --grid is 2.0"),
        ("vision/imagenet", {"source": "fake", "resize": 8, "image_size": 16}, "--resize is 8 but --image-size 16"),
        ("vision/imagenet", {"teacher_file": "nothing.pth"}, "--teacher-file is nothing.pth, which does not exist"),
        ("cifar100/run", {"teacher_file": "nothing.pth"}, "--teacher-file is nothing.pth, which does not exist"),
        ("cifar100/run", {"table": True, "student": "resnet8"}, "nobody published resnet56 -> resnet8"),
        ("cifar100/run", {"methods": ("at", "at")}, "--methods has 'at' twice"),
        ("cifar100/every_method", {"pairs": ("resnet8",)}, "--pairs has 'resnet8': name two of"),
        ("digits", {"hidden": 0}, "--hidden is 0: give at least 1"),
        ("digits", {"labels": 7}, "--labels is 7: give a multiple of 10 up to 1000"),
        ("digits", {"widths": (4, 0)}, "--widths is 0: give at least 1"),
    ],
)
def test_experiments_refuse_what_their_flags_alone_show(name, values, message):
    kind = ALL[6 + FILES.index(name)]
    config = kind(**values)
    with pytest.raises(ValueError, match=message):
        (config.named if hasattr(config, "named") else config.check)()
