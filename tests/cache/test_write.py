"""A cache of targets trains as the live teacher does, is written once whatever happens, and by all devices."""

import dataclasses
import functools
import os
import pathlib
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_equal

from jaxkd import augment, cache, data, losses, models, objectives, parallel
from jaxkd.cache import shards, write
from jaxkd.cache.manifest import Manifest, read_manifest, stem
from jaxkd.cache.write import write_targets
from jaxkd.experiment.context import Context
from jaxkd.experiment.flags import StepOptions
from jaxkd.experiment.teachers import cached_teacher
from jaxkd.experiment.trainer import train_phase
from jaxkd.runs.directory import open_run
from jaxkd.runs.logger import Logger, read_metrics
from jaxkd.types import Outputs, Variables

SIZE, CLASSES, VIEWS = 40, 6, 2
rng = np.random.default_rng(0)
ARRAYS = {"image": rng.integers(0, 256, (SIZE, 6, 6, 3), dtype=np.uint8), "label": rng.integers(0, CLASSES, SIZE)}
SOURCE = data.open_source(ARRAYS, num_classes=CLASSES)
PREPARE = augment.augment_batch(
    augment.compose(augment.to_float(), augment.random_crop(1), augment.flip(), augment.normalize(0.5, 0.25)), seed=3
)
TEACHER, STUDENT = models.mlp(CLASSES, hidden=(32,)), models.mlp(CLASSES, hidden=(8,))
MADE = {"teacher": "abc"}
TERM = objectives.weighted(
    label=(0.1, objectives.from_labels(losses.cross_entropy)),
    kd=(0.9, objectives.from_logits(losses.kd, temperature=2.0)),
)
READ, RESIDENT = StepOptions(), StepOptions(resident=True, at_once=3)
BUCKET = objectives.from_outputs(
    losses.topk_kl_tail_bucket, "student.logits", "teacher.top_ids", "teacher.top_logprobs", "teacher.top_tail"
)


@functools.cache
def known():
    """Variables of a teacher that is sure of something."""
    variables = jax.jit(TEACHER.init)(jax.random.key(1), PREPARE(data.train_batches(SOURCE, 8, seed=0)[0]))
    return jax.tree.map(lambda x: 3 * x, variables)


def plan():
    return parallel.with_jit(parallel.make_mesh(jax.devices()[:2]))


@dataclasses.dataclass(frozen=True)
class Config:
    name: str = "run"


def trained(folder, *, keep, term=TERM, teacher=TEACHER, training=READ, steps=13, **options):
    """Final state and logged losses of a student; the experiment differs in one line."""
    with open_run(Config(), root=folder) as run, Logger(run.path, tensorboard=False) as logger:
        setting = Context(run, logger, plan(), 4, 10, PREPARE, PREPARE, training)
        source, model, variables = cached_teacher(setting, SOURCE, teacher, known(), views=VIEWS, keep=keep, **options)
        state = train_phase(
            setting,
            "student",
            source,
            student=STUDENT,
            objective=(term, optax.sgd(0.1)),
            steps=steps,
            key=jax.random.key(0),
            teacher=model,
            teacher_variables=variables,
            log_every=1,
        )
        return state, np.array([line["loss"] for line in read_metrics(run.path)])


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """Three epochs, of which the third sees the first's views again."""
    return trained(tmp_path_factory.mktemp("live"), keep="none")


@pytest.mark.parametrize("training", [READ, RESIDENT], ids=["read", "resident"])
def test_full_logits_train_to_the_bits_of_the_live_teacher(live, training, tmp_path):
    state, found = trained(tmp_path, keep="full", training=training)
    assert_trees_equal(state.params, live[0].params)
    np.testing.assert_array_equal(found, live[1])


def test_another_view_would_not_do(live, tmp_path, monkeypatch):
    """Negative control: targets of a view that the student does not see."""
    right = write._targets

    def shifted(model, prepare, *rest):
        return right(model, lambda batch: prepare({**batch, "view": batch["view"] + 1}), *rest)

    monkeypatch.setattr(write, "_targets", shifted)
    _, found = trained(tmp_path, keep="full", steps=2)
    assert np.abs(found - live[1][:2]).max() > 1e-3


def test_top_k_trains_as_the_live_teacher_with_the_same_reduction(live, tmp_path):
    """With a loss of whole logits and with one of kept classes."""
    term = objectives.weighted(kd=TERM, kept=BUCKET)
    _, of_live = trained(tmp_path / "live", keep="none", teacher=models.top_k(TEACHER, 3), term=term)
    _, of_cache = trained(tmp_path / "cache", keep=3, term=term)
    np.testing.assert_allclose(of_cache, of_live, rtol=1e-4)
    assert not np.array_equal(of_cache, of_live), "float16 was kept"


def written(folder, *, teacher=TEACHER, **options):
    given = {"plan": plan(), "prepare": PREPARE, "views": VIEWS, "batch_size": 8, "made_with": MADE, "rows": 16}
    rate = write_targets(folder, SOURCE, teacher, known(), **(given | options))
    return rate, {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "manifest.json"}


def read(folder, view=0, **options):
    joined = cache.with_targets(SOURCE, folder, made_with=MADE, prepare=PREPARE, **options)
    return joined.targets(np.arange(SIZE), view)


@pytest.fixture(scope="module")
def logits(tmp_path_factory):
    """The teacher's logits of both views, from a cache."""
    written(folder := tmp_path_factory.mktemp("full"))
    return [read(folder, view)["teacher_logits"] for view in range(VIEWS)]


def test_a_cache_holds_what_the_teacher_says_of_each_view(logits):
    batch, teacher = SOURCE.read(np.arange(SIZE)), known()
    apply = jax.jit(lambda batch: TEACHER.apply(teacher, PREPARE(batch), None, False)[0].logits)
    for view in range(VIEWS):
        said = apply({**batch, "view": np.full(SIZE, view, np.int32)})
        np.testing.assert_allclose(logits[view], said, rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnums=3)
def compared(logits, student, found, k):
    """The exact reduction, the losses with it and with the cache's, and the student's log-probabilities."""
    kept = models.keep_top_k(logits, k)
    one, other = (losses.topk_kl_tail_bucket(student, *(x[n] for n in models.KEPT)) for x in (kept, found))
    return kept, one, other, jax.nn.log_softmax(student)


@pytest.mark.parametrize("k", [1, 3, CLASSES])
def test_a_top_k_cache_keeps_the_bound_that_it_states(k, tmp_path, logits):
    written(tmp_path, top_k=k)
    for view in range(VIEWS):
        found = read(tmp_path, view)
        student = np.random.default_rng(view).normal(size=(SIZE, CLASSES)).astype(np.float32)
        kept, one, other, log_q = jax.device_get(compared(logits[view], student, found, k))
        assert {name: x.dtype for name, x in found.items()} == {
            "top_ids": np.int32,
            "top_logprobs": np.float16,
            "top_tail": np.float32,
        }
        np.testing.assert_array_equal(found["top_ids"], kept["top_ids"])
        np.testing.assert_allclose(found["top_tail"], kept["top_tail"], rtol=1e-6, atol=2e-6)
        exact = np.asarray(kept["top_logprobs"], np.float64)
        error = np.abs(found["top_logprobs"].astype(np.float64) - exact)
        assert np.all(error <= 2.0**-11 * np.abs(exact) + 2.0**-25 + 2e-6)
        # To first order the loss moves by sum_k p_k dl_k (log p_k / q_k - KL).
        log_q = np.take_along_axis(log_q, found["top_ids"], -1)
        steep = np.abs(exact - log_q - one[:, None])
        bound = np.sum(np.exp(exact) * (2.0**-11 * np.abs(exact) + 2.0**-25) * steep, axis=-1)
        assert np.all(np.abs(one - other) <= 1.05 * bound + 2e-6)


@pytest.mark.parametrize(("classes", "dtype"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_the_ids_of_many_classes_and_tiny_probabilities_are_kept(classes, dtype):
    """Below the least number of float16 a class is not yet one that is masked."""
    logits = np.full((1, classes), -np.inf, np.float32)
    logits[0, -1], logits[0, 7] = 0.0, -1e5
    teacher = TEACHER._replace(apply=lambda *_: (Outputs(jnp.asarray(logits)), {}))
    found = write._targets(teacher, dict, 3, (), Variables({}, {}), {})
    assert found["top_ids"].dtype == dtype
    assert found["top_ids"][0, :2].tolist() == [classes - 1, 7]
    assert found["top_logprobs"].dtype == np.float16
    assert found["top_logprobs"][0].tolist() == [0.0, float(np.finfo(np.float16).min), -np.inf]
    found = jax.device_get(found)
    fields = {name: (values.dtype.name, values.shape[1:]) for name, values in found.items()}
    records = write.to_records(pathlib.Path(), Manifest(0, 1, 1, 1, fields, {}, {}), 0, range(1), found)
    np.testing.assert_array_equal(records["top_logprobs"], found["top_logprobs"])


def test_tail_bucket_takes_the_tail_of_the_cache_instead_of_a_rounded_complement():
    kept = jax.jit(models.keep_top_k, static_argnums=1)(np.float32([[4.0, 3.98, -3.0, -3.5]]), 2)
    rounded = {**kept, "top_logprobs": np.asarray(kept["top_logprobs"]).astype(np.float16)}
    student = np.float32([[4.0, 4.0, -14.0, -14.0]])  # whose own tail is all but empty, so that the teacher's counts

    def bucket(given, tail=()):
        return float(jax.jit(losses.topk_kl_tail_bucket)(student, given["top_ids"], given["top_logprobs"], *tail)[0])

    exact = bucket(kept)
    assert abs(bucket(rounded, [kept["top_tail"]]) - exact) < 0.1 * abs(bucket(rounded) - exact)
    with pytest.raises(ValueError, match=r"the teacher's tail has shape \(\), expected \(1,\)"):
        bucket(kept, [0.0])


def test_features_are_kept_beside_the_logits(tmp_path, logits):
    written(tmp_path, features=("pooled",))
    found = read(tmp_path, 1)
    np.testing.assert_allclose(found["teacher_logits"], logits[1], rtol=1e-5, atol=1e-5)
    assert found["pooled"].shape == (SIZE, 32)
    read_back = models.cached(features=("pooled",)).apply(known(), found, None, False)[0]
    np.testing.assert_array_equal(read_back.features["pooled"], found["pooled"])
    with pytest.raises(
        ValueError,
        match=r"are pooled \[32\] float32, teacher_logits \[6\] float32 of 40 examples, not "
        r"teacher_logits \[6\] float32 of 40: write the new ones to another folder",
    ):
        written(tmp_path)


def test_any_number_of_devices_writes_the_same_targets(tmp_path, logits):
    written(tmp_path, plan=parallel.with_pmap(jax.devices()[:4]))
    for view in range(VIEWS):
        np.testing.assert_allclose(read(tmp_path, view)["teacher_logits"], logits[view], rtol=1e-5, atol=1e-5)


PROGRAM = """
import os, signal
from array_record.python import array_record_module
from cache.test_write import written
import pathlib, sys

class Killing(array_record_module.ArrayRecordWriter):
    count = 0

    def write(self, record):
        Killing.count += 1
        if Killing.count > 16 + 16 + 5:
            os.kill(os.getpid(), signal.SIGKILL)
        super().write(record)

array_record_module.ArrayRecordWriter = Killing
written(pathlib.Path(sys.argv[1]))
"""


def test_a_killed_writer_goes_on_and_keeps_what_was_whole(forks, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    killed = forks.start_code(PROGRAM, cut, devices=2, path=[pathlib.Path(__file__).parents[1]])
    _, said = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, said
    left = {path.name: path.stat().st_mtime_ns for path in cut.iterdir()}
    kept = {name: time for name, time in left.items() if name.endswith(shards.ENDING)}
    assert [name.rsplit("-", 1)[0] for name in sorted(kept)] == [stem(0, 0), stem(0, 16)]
    assert sum(name.endswith(".part") for name in left) == 1
    with pytest.raises(ValueError, match="they hold no whole view"):
        read(cut)
    torn = cut / min(kept)
    os.truncate(torn, 70_000)
    kept[torn.name] = torn.stat().st_mtime_ns
    _, again = written(cut)
    _, undisturbed = written(whole)
    assert set(again) == set(undisturbed), "names hold checksums"
    assert {name for name in kept if again[name] != kept[name]} == {torn.name}
    for view in range(VIEWS):
        assert_trees_equal(read(cut, view), read(whole, view))


def test_what_is_there_is_not_written_again_and_views_may_be_added(tmp_path):
    rate, first = written(tmp_path)
    assert rate > 0
    again, same = written(tmp_path)
    assert again is None
    assert same == first
    _, more = written(tmp_path, views=3)
    assert len(more) == 9
    assert first.items() <= more.items()
    assert read(tmp_path, 2)["teacher_logits"].shape == (SIZE, CLASSES)
    _, fewer = written(tmp_path, views=1)
    assert fewer == more
    assert read_manifest(tmp_path).views == 3


def broken(batch):
    outputs, state = TEACHER.apply(known(), batch, None, False)
    return outputs._replace(logits=jnp.where(batch["id"][:, None] == 21, jnp.nan, outputs.logits)), state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0}, "views is 0: give at least 1"),
        ({"features": ("stage9",)}, "no feature 'stage9' to write, it has .*pooled: name one of them"),
        ({"top_k": 7}, r"the top 7 of 6 classes were asked for: give 1\.\.6"),
        ({"batch_size": 3}, "cannot be split evenly over"),
        (
            {"teacher": TEACHER._replace(apply=lambda v, batch, key, train: broken(batch))},
            "`teacher_logits` of example 21 in view 0 is NaN, so its shard was not written",
        ),
        (
            {"prepare": augment.augment_batch(augment.to_float(), seed=0, mix=augment.cutmix(CLASSES))},
            "`image` of an example depends on the others in its batch, as with mixup or cutmix",
        ),
    ],
)
def test_what_cannot_be_cached_gets_a_sentence(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        written(tmp_path, **options)
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(f"view*-row{16:09d}*{shards.ENDING}")), "the row 21 lies there"


def test_another_teacher_is_refused_before_anything_is_written(tmp_path):
    _, first = written(tmp_path)
    with pytest.raises(ValueError, match="were made with teacher = abc, not xyz"):
        written(tmp_path, views=3, made_with={"teacher": "xyz"})
    with pytest.raises(ValueError, match="another preparation"):
        written(tmp_path, views=3, prepare=augment.augment_batch(augment.to_float(), seed=0))
    assert written(tmp_path)[1] == first


def test_processes_share_the_shards_and_have_as_many_batches(monkeypatch):
    missing = Manifest(0, 40, 16, 0, {}, {}, {}).shards(3)[2:]
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    plans = []
    for number in range(3):
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        plans.append(list(write._choices(missing, 4)))
    assert len({len(batches) for batches in plans}) == 1
    named = [(name, rows, view) for batches in plans for name, (rows, view) in batches if name]
    rows_of = [(view, row) for _, rows, view in named for row in rows]
    assert sorted(rows_of) == sorted((view, row) for view, rows in missing for row in rows)
    assert all(name == stem(view, rows.start // 16 * 16) for name, rows, view in named)
    owners = [{name for name, _ in batches if name} for batches in plans]
    assert not owners[0] & owners[1]
    assert not owners[1] & owners[2]


def test_the_precision_of_the_teacher_is_part_of_the_fingerprint(tmp_path):
    trained(tmp_path / "a", keep="full", steps=1, path=tmp_path / "t")
    for name in ("precision", "teacher_weights"):
        training = StepOptions(**{name: "bfloat16"})
        with pytest.raises(ValueError, match=rf"{name} = \w+, not bfloat16"):
            trained(tmp_path / name, keep="full", steps=1, path=tmp_path / "t", training=training)
