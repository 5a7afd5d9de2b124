"""The property table: what each loss declares holds, and a loss that declares nothing fails."""

import functools
import inspect

import pytest
from losses import declared_features, declared_logits, declared_maps, declared_relations, declared_sequence

from jaxkd import losses, testing

DECLARED = {
    **declared_logits.DECLARED,
    **declared_sequence.DECLARED,
    **declared_maps.DECLARED,
    **declared_features.DECLARED,
    **declared_relations.DECLARED,
}
# Not losses of arrays but ways to make one: they turn logits or losses into others.
TRANSFORMATIONS = {losses.standardize_logits, losses.token_level}


def original(function):
    """The library's function under a test's binding of arguments."""
    while isinstance(function, functools.partial):
        function = function.func
    return inspect.unwrap(function)


@pytest.mark.parametrize("loss", DECLARED, ids=lambda f: original(f).__name__)
def test_what_a_loss_declares_holds(loss):
    declared = DECLARED[loss]
    # All else is evaluated compiled; uncompiled calls, whose operations each compile alone, the twins' tests make.
    properties = [one for one in declared.properties if one is not testing.JIT]
    report = testing.check_loss(loss, declared.inputs(), properties=properties, **declared.options)
    assert report, str(report)


def test_every_loss_declares_its_properties():
    declared = {original(loss) for loss in DECLARED} | TRANSFORMATIONS
    missing = [name for name in losses.__all__ if getattr(losses, name) not in declared]
    assert not missing, f"add a declaration for {missing}"
