"""Every loss has the properties that it declares, and a loss without a declaration fails."""

import inspect
import pathlib

import pytest

from jaxkd import losses, testing

FILES = {p.stem for p in pathlib.Path(losses.__file__).parent.glob("*.py")} - {"__init__", "table"}


@pytest.mark.parametrize("name", losses.__all__)
def test_what_a_loss_declares_holds(name):
    # All else is evaluated compiled; uncompiled calls, whose operations each compile alone, the twins' tests make.
    report = testing.declaration_of(getattr(losses, name)).check(leave_out=(testing.JIT,))
    assert report, str(report)


@pytest.mark.parametrize("name", losses.__all__)
def test_a_loss_says_whether_it_couples_the_batch(name):
    declared = testing.declaration_of(getattr(losses, name))
    first_line = inspect.getdoc(declared.loss).splitlines()[0]
    assert ("couples the batch" in first_line) == (declared.kind == "couples the batch")


def test_every_loss_of_every_module_is_one_of_the_library():
    modules = [getattr(losses, name) for name in sorted(FILES)]
    assert sorted(losses.__all__) == sorted(name for module in modules for name in module.__all__)
    for module in modules:
        functions = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == module.__name__]
        assert {f.__name__ for f in functions if "__declaration__" in vars(f)} == set(module.__all__)
