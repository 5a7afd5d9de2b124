"""The pairs of the CIFAR-100 benchmark and the table of methods: every method fits every pair, every loss has one."""

import functools
import pathlib
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import published
import pytest
import recipe
import run

from jaxkd import losses, models
from jaxkd.experiment import methods
from jaxkd.experiment.methods import tuned
from jaxkd.experiment.methods.pair import Pair, matching_stages
from jaxkd.pytorch import CIFAR100_BENCHMARK
from jaxkd.testing import declarations
from jaxkd.types import Model, Outputs, Variables

METHODS = pathlib.Path(methods.__file__).parent
BATCH = {
    "image": jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32),
    "label": jax.ShapeDtypeStruct((8,), jnp.int32),
    "id": jax.ShapeDtypeStruct((8,), jnp.int32),
}
# The deeper networks of a family have the shapes of the shallower ones.
SHALLOW = {"resnet32": "resnet20", "resnet56": "resnet20", "resnet110": "resnet20", "resnet32x4": "resnet8x4"}
SHALLOW |= {"wrn_40_2": "wrn_16_2", "wrn_40_1": "wrn_16_1", "vgg13": "vgg8"}


def network(name):
    return models.with_head(CIFAR100_BENCHMARK[name].make(100))


@functools.cache
def outputs(name):
    """A network's outputs, as shapes."""
    return outputs_of(network(name))


def outputs_of(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), BATCH)
    return jax.eval_shape(lambda v, b: model.apply(v, b, None, False)[0], variables, BATCH)


def pair_of(names):
    t, s = (outputs(SHALLOW.get(name, name)) for name in names)
    *stages, same = matching_stages(s.features, t.features)
    assert stages[0] == stages[1], "all of the benchmark's pairs have as many stages on both sides"
    classifier = tuple(np.zeros(t.head[part].shape, np.float32) for part in ("kernel", "bias"))
    norms = [(np.ones(t.features[n].shape[-1], np.float32),) * 2 for n in stages[1]]
    size = t.features["last"].shape[1:3]
    return Pair(names, *stages, same, classifier, size, lambda: norms, 200, lambda: np.arange(200) % 100, 1000), s, t


def value_of(term, s, t):
    """Shape and dtype of an objective, without computing anything; and of its params."""
    owned = jax.eval_shape(lambda: term.init(jax.random.key(0), s, t, BATCH))
    apply = jax.eval_shape(lambda *given: term.apply(*given, jax.random.key(0), jnp.int32(0)), owned, s, t, BATCH)
    assert apply[1].keys() == owned.state.keys()
    return (apply[0].shape, apply[0].dtype), owned.params


def stand_in(out):
    """A model with the outputs of a network that was traced before."""

    def apply(variables, batch, key, train):
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), out), {}

    return Model(lambda key, batch: Variables({}, {}), apply)


def check(name, pair, s, t):
    """The objective of every phase of a method is a float."""
    method, student = methods.METHODS[name], stand_in(s)
    if (wrapped := method.wrap(pair, student)) is not student:
        s = outputs_of(wrapped)
    if method.term_first or method.pretrain:
        found, params = value_of((method.pretrain or method.make)(pair), s, t)
        assert found == ((), jnp.float32), name
        pair = pair._replace(pretrained=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), params))
    assert value_of(methods.objective(name, pair), s, t)[0] == ((), jnp.float32), name


def signature(name, names):
    """All that the shapes of a method's objective depend on: networks with the same shapes share one trace."""
    table = {"dkd": tuned.BETA, "review": tuned.REVIEW, "cat_kd": tuned.CAT}.get(name, {})
    return name, *(SHALLOW.get(network, network) for network in names), table.get(names)


CHECKED = set()


@pytest.mark.parametrize("names", published.PAIRS, ids=lambda pair: "-".join(pair))
def test_no_method_is_surprised_by_the_shapes_of_a_pair(names):
    pair, s, t = pair_of(names)
    first = names == published.PAIRS[0]  # logits have one shape in all pairs
    for name in methods.METHODS if first else methods.FEATURES:
        if signature(name, names) in CHECKED:
            continue
        if methods.applies(name, pair):
            check(name, pair, s, t)
        else:
            with pytest.raises(ValueError, match=r"feature maps have shapes .*: give at least two layers"):
                check(name, pair, s, t)
        CHECKED.add(signature(name, names))


def test_phases_of_pretraining():
    pair, *_ = pair_of(published.PAIRS[2])
    asked = []

    def train(name, *, term, pretrains, points=None):
        asked.append((name, pretrains, points))
        return SimpleNamespace(params={"student": 1, "term": {"encoder": 2}}, state={"student": 3})

    def pretrain(name):
        return methods.pretrain(methods.METHODS[name], name, pair, train, "points")

    assert pretrain("kd") == (pair, None)
    assert not asked
    assert pretrain("ab") == (pair, Variables(1, 3))  # each student goes on from its own
    assert pretrain("ft") == (pair._replace(pretrained={"encoder": 2}), None)  # one paraphraser for all
    assert asked == [("ab-pretraining", "student", "points"), ("ft-pretraining", "term", None)]
    assert {name for name, m in methods.METHODS.items() if m.term_first} == {"ab", "fsp"}


@pytest.mark.parametrize("deep", SHALLOW)
def test_shallow_networks_stand_for_deep_ones(deep):
    assert outputs(deep) == outputs(SHALLOW[deep])


def test_congruence_is_of_unit_vectors():
    """For the kernel's series knows no others."""
    term = methods.METHODS["cc_kernel"].make(None)
    s, t = (Outputs(None, {"pooled": x}) for x in np.random.default_rng(0).standard_normal((2, 4, 6)))
    owned = term.init(jax.random.key(0), s, t, {})

    def value(factor):
        larger = Outputs(None, {"pooled": factor * s.features["pooled"]})
        return float(term.apply(owned, larger, t, {}, jax.random.key(0), jnp.int32(0))[0])

    assert 0 < value(1.0) == pytest.approx(value(100.0), rel=1e-5)


def test_every_loss_has_its_method_or_its_reason():
    written = "".join((METHODS / name).read_text() for name in ("table.py", "makers.py"))
    used = set(re.findall(r"\b(?:losses|objectives)\.(\w+)", written)) | set(methods.LOGITS)
    parts = {"rkd_distance", "rkd_angle", "review_hcl"}  # of rkd and review
    for declared in declarations(losses):
        assert (declared.name in used) != bool(declared.needs) or declared.name in parts, declared.name


def test_weights_of_the_benchmark():
    expected = {
        "kd": 0.9,
        "fitnet": 100,
        "at": 1000,
        "sp": 3000,
        "cc": 0.02,
        "vid": 1,
        "rkd": 1,
        "pkt": 30000,
        "ab": 1,
        "ft": 200,
        "fsp": 50,
        "nst": 50,
        "crd": 0.8,
    }
    assert {name: m.weight for name, m in methods.METHODS.items() if m.source == "R"} == expected
    assert all(m.label == (0.1 if name == "kd" else 1) for name, m in methods.METHODS.items() if m.source == "R")
    assert set(expected) == set(published.LAST) - {"teacher", "alone"}
    assert {*tuned.BETA, *tuned.REVIEW, *tuned.CAT} <= set(published.PAIRS)


def test_the_recipe():
    def rates(network, epochs, **options):
        update = recipe.optimizer(network, epochs=epochs, steps_per_epoch=10, weight_decay=0.0, **options)
        state, found = update.init({"w": jnp.ones(())}), []
        take = jax.jit(update.update)
        for _ in range(10 * epochs):
            moved, state = take({"w": jnp.ones(())}, state, {"w": jnp.ones(())})
            state = optax.tree_utils.tree_set(state, trace={"w": jnp.zeros(())})  # no momentum
            found.append(-float(moved["w"]))
        return [round(found[10 * epoch], 7) for epoch in range(epochs)]

    assert rates("resnet20", 24, pretrains="student") == rates("vgg8", 24, pretrains="term") == [0.05] * 24
    assert rates("resnet20", 24, pretrains="term") == [0.01] * 24  # the benchmark's paraphrasers with ResNets
    assert [methods.scaled(epochs, recipe.PRETRAINING) for epochs in (240, 24, 1)] == [30, 3, 1]
    whole = rates("resnet20", 24)
    assert whole == [0.05] * 15 + [0.005] * 3 + [0.0005] * 3 + [0.00005] * 3
    assert rates("MobileNetV2", 8)[0] == rates("ShuffleV1", 8)[0] == 0.01
    assert rates("ShuffleV1", 8, learning_rate=0.3)[0] == 0.3
    assert rates("resnet20", 1, learning_rate=0.0)[0] == 0, "not the usual rate"


def test_published_figures_stand_next_to_ours():
    pair = ("resnet56", "resnet20")
    assert {"kd", "at", "sp", "rkd", "dkd", "crd"} <= set(published.methods_of(pair))
    assert "fsp" not in published.methods_of(("wrn_40_2", "wrn_40_1"))
    assert published.methods_of(("resnet110", "resnet20"))[:2] == ["kd", "fitnet"]
    found = {"kd": {"last": [0.5, 0.6], "best": [0.6, 0.6]}, "dkd": {"last": 0.5, "best": 0.55}}
    kd, dkd = recipe.table_rows(found, pair, {"kd": 12.3})
    assert (kd["last"], kd["published"], kd["seconds"]) == ("55.00 ± 7.07", "70.66", "12")
    assert (dkd["best"], dkd["later"], dkd["seconds"]) == ("55.00", "71.97", "-")
    assert "published" not in dkd


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"teacher": "resnet57"}, "no network 'resnet57': choose one of .*resnet8.* for --teacher"),
        ({"methods": ("kd", "kdd")}, "no method 'kdd': choose one of kd.* for --methods"),
        ({"teacher": "resnet8", "student": "resnet8", "table": True}, "nobody published resnet8 -> resnet8"),
        ({"epochs": 0}, "--epochs is 0"),
    ],
)
def test_unknown_names_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        run.Config(**more).check()
