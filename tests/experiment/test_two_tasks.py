"""Two tasks of one network, and two domains of pictures: what is opened, trained and refused."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxkd import data, models
from jaxkd.experiment import image_tasks, two_domains, two_tasks
from jaxkd.experiment.comparison import SMOKE, SYNTHETIC, ComparisonConfig
from jaxkd.experiment.image_tasks import FROZEN, ImageTasksConfig, open_image_tasks

CONFIG = ImageTasksConfig(**image_tasks.SMOKE)


def test_the_new_task_is_the_classes_after_the_old_ones_with_few_labels():
    tasks, rehearsed = open_image_tasks(CONFIG)
    assert {name: [len(s) for s in splits] for name, splits in tasks.items()} == {
        "old": [36, 4, 16],
        "new": [16, 4, 16],
    }
    for source in (tasks["new"][0], rehearsed):
        assert np.bincount(data.labels_of(source)).tolist() == [8, 8]
    corner = [np.mean(s[2].read(np.arange(16))["image"][:, 6:], axis=(1, 2, 3)) for s in tasks.values()]
    assert corner[0].max() < corner[1].min()  # the brighter quarter is above in the old classes, below in the new ones


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"new_classes": 3},
            "--classes is 2 and --new-classes 3, but synthetic has 4: give at least 2 of each, at most 4",
        ),
        ({"classes": 1}, "--classes is 1"),
        ({"per_class": 99}, r"--per-class is 99 but a class of .* has 18 examples: give at most 18"),
    ],
)
def test_tasks_that_there_are_not_get_a_sentence(changes, said):
    with pytest.raises(ValueError, match=said):
        open_image_tasks(dataclasses.replace(CONFIG, **changes))


def test_ways_train_their_part_of_the_network_alone():
    model = models.with_heads(models.mlp(2, hidden=(4,)), old=2, new=3)
    batch, key = {"image": np.ones((2, 3, 3, 1), np.float32)}, jax.random.key(0)
    variables = models.init(model, key, batch)
    ways = two_tasks.make_ways(frozen=FROZEN)
    adapted = ways["fine-tuned"]._replace(rank=2, rules=("dense",))
    parts = {"frozen": {"heads"}, "fine-tuned": {"dense1", "head", "heads"}, "adapted": {"lora", "heads"}}
    for name, way in {**ways, "adapted": adapted}.items():
        own = way.variables(key, variables)
        assert set(own.params) == parts.get(name, parts["fine-tuned"]), name
        outputs, _ = way.model(models.at_head(model, "new")).apply(own, batch, None, False)
        wanted, _ = models.at_head(model, "new").apply(variables, batch, None, False)
        np.testing.assert_array_equal(outputs.logits, wanted.logits)
    assert set(adapted.variables(key, variables).params["heads"]) == {"new"}  # the old task's layer stays as it is
    optimizer = two_tasks.adam(1e-3, 10)
    params = {"student": adapted.variables(key, variables).params, "term": {}}
    state = optimizer.init(params)
    for _ in range(2):
        updates, state = optimizer.update(jax.tree.map(np.ones_like, params), state, params)
    assert all(np.allclose(x, -1e-2, rtol=1e-3) for x in jax.tree.leaves(updates))  # adapters learn as heads do


def test_ways_that_do_not_fit_the_network_are_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(image_tasks, "Trials", lambda *_: None)
    tasks = image_tasks.ImageTasks(CONFIG, None, None, None)
    way = two_tasks.make_ways(frozen=FROZEN)["fine-tuned"]
    tasks.check({"fine-tuned": way, "lora-2": way._replace(rank=2, rules=("stage",))})
    for changes, said in (
        (
            {"rank": 5, "rules": ("stage",)},
            "the way x does not fit --network tiny: rank is 5, but stage1/kernel is .* 27 x 4",
        ),
        ({"rank": 1, "rules": ("block",)}, "`rules` has the pattern 'block'"),
        ({"frozen": "block"}, "freezes no param"),
    ):
        with pytest.raises(ValueError, match=said):
            tasks.check({"x": way._replace(**changes)})


@dataclasses.dataclass(frozen=True)
class DomainsConfig(ComparisonConfig):
    target: str = SYNTHETIC
    source_split: str = "train"
    source_validation_split: str = "test"
    teacher_size: int | None = 8


def test_domains_are_opened_for_teacher_and_students(monkeypatch):
    monkeypatch.setattr(two_domains, "compare", lambda *_, splits: SimpleNamespace(splits=splits, teacher=None))
    monkeypatch.setattr(two_domains, "check_network", lambda *_: None)
    config = DomainsConfig(**{**SMOKE, "image_size": 10, "validation_split": "test", "train_split": "train"})
    domains = two_domains.open_domains(config, None, None, None)
    assert domains.own.image_shape == (8, 8, 3)
    assert (
        domains.labelled.image_shape
        == domains.held_out.image_shape
        == (10, 10, 3)
        == domains.compared.splits[0].image_shape
    )
    grey = two_domains._in_channels(domains.labelled, 1)
    assert (grey.image_shape, grey.num_classes) == ((10, 10, 1), 4)
    np.testing.assert_array_equal(data.labels_of(grey), data.labels_of(domains.own))
    monkeypatch.setattr(
        two_domains, "synthetic", lambda: {"image": np.zeros((9, 4, 4, 1), np.uint8), "label": np.arange(9)}
    )
    monkeypatch.setattr(two_domains, "open_images", lambda *a, **k: [domains.compared.splits[0]])
    with pytest.raises(
        ValueError, match=r"has 9 classes but .* has 4: give a --source and a --target of the same classes"
    ):
        two_domains.open_domains(config, None, None, None)
