"""Contrastive losses against float64 twins, and the memories that they carry."""

import json
import pathlib

import jax
import numpy as np
import pytest
from losses.programs import compiled, differentiated, run

from jaxkd.losses import clip_kd, contrastive

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def draw(shape, seed, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def in_float64(loss, *arrays, **options):
    with jax.enable_x64(True):
        return run(loss, *arrays, **options)


def cosines(x, y):
    x, y = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y))
    return x @ y.T


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def make_bank(rows=12, width=4, z=-1.0, seed=0):
    student, teacher = draw((2, rows, width), seed, 0.5)
    return contrastive.CRDBank(*(np.asarray(a, np.float32) for a in (student, teacher, z, z)))


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_info_nce_equals_its_numpy_twin(temperature):
    s, t = draw((6, 4), 1), draw((6, 4), 2)
    expected = -np.mean(np.diag(log_softmax(cosines(s, t) / temperature)))
    value = in_float64(contrastive.info_nce, s, t, temperature=temperature)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_info_nce_of_indistinguishable_examples_is_log_b():
    s = np.repeat(draw((1, 4), 3), 5, axis=0)
    np.testing.assert_allclose(in_float64(contrastive.info_nce, s, draw((1, 4), 4).repeat(5, 0)), np.log(5), rtol=1e-12)


def test_a_queue_of_the_other_examples_gives_what_the_batch_gives():
    s, t = draw((4, 3), 5), draw((4, 3), 6)
    each = [
        in_float64(contrastive.info_nce_queue, s[i : i + 1], t[i : i + 1], np.delete(t, i, axis=0))[0] for i in range(4)
    ]
    np.testing.assert_allclose(np.mean(each), in_float64(contrastive.info_nce, s, t), rtol=1e-12)


def test_similarities_to_a_queue_equal_their_numpy_twin():
    s, t, queue = draw((4, 3), 5), draw((4, 3), 6), draw((7, 3), 7)
    expected = []
    for own, other in zip(s, t, strict=True):
        rows = np.concatenate([other[None], queue])
        log_p = log_softmax(cosines(other[None], rows) / 0.05)[0]
        log_q = log_softmax(cosines(own[None], rows) / 0.3)[0]
        expected.append(np.sum(np.exp(log_p) * (log_p - log_q)))
    hyper = {"temperature": 0.3, "teacher_temperature": 0.05}
    np.testing.assert_allclose(in_float64(contrastive.queue_similarity, s, t, queue, **hyper), expected, rtol=1e-12)
    equal = in_float64(contrastive.queue_similarity, 2 * t, t, queue, temperature=0.1, teacher_temperature=0.1)
    np.testing.assert_allclose(equal, np.zeros(4), atol=1e-14)


def test_the_queue_is_first_in_first_out_with_rows_of_unit_length():
    queue = contrastive.queue_init(jax.random.key(0), size=5, width=3)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=1), np.ones(5), rtol=1e-6)
    batch = draw((2, 3), 7)
    push = compiled(contrastive.queue_push)
    pushed = push(queue, batch)
    np.testing.assert_array_equal(pushed[:3], queue[2:])
    np.testing.assert_allclose(pushed[3:], batch / np.linalg.norm(batch, axis=1, keepdims=True), rtol=1e-6)
    large = draw((8, 3), 8)
    np.testing.assert_allclose(cosines(np.asarray(push(queue, large)), large[3:]).diagonal(), np.ones(5), rtol=1e-6)
    assert pushed.dtype == queue.dtype


def test_clip_is_info_nce_both_ways():
    s, t = draw((6, 4), 9), draw((6, 4), 10)
    z = cosines(s, t) / 0.3
    expected = -(np.mean(np.diag(log_softmax(z))) + np.mean(np.diag(log_softmax(z.T)))) / 2
    np.testing.assert_allclose(in_float64(contrastive.clip, s, t, temperature=0.3), expected, rtol=1e-12)


def test_clip_affinity_equals_its_numpy_twin_and_is_zero_for_equal_affinities():
    s_image, s_text, t_image, t_text = *draw((2, 5, 4), 11), *draw((2, 5, 3), 12)
    s, t = cosines(s_image, s_text) / 0.2, cosines(t_image, t_text) / 0.5

    def kl(t, s):
        log_t, log_s = log_softmax(t), log_softmax(s)
        return np.mean(np.sum(np.exp(log_t) * (log_t - log_s), axis=-1))

    options = {"temperature": 0.2, "teacher_temperature": 0.5}
    value = in_float64(contrastive.clip_affinity, s_image, s_text, t_image, t_text, **options)
    np.testing.assert_allclose(value, kl(t, s) + kl(t.T, s.T), rtol=1e-12)
    rotation = np.linalg.qr(draw((4, 4), 13))[0]
    equal = in_float64(contrastive.clip_affinity, s_image, s_text, s_image @ rotation, s_text @ rotation)
    np.testing.assert_allclose(equal, 0, atol=1e-12)


def test_losses_of_clip_kd_equal_their_numpy_twins():
    s_image, s_text, t_image, t_text = draw((4, 5, 4), 14)
    rows = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s_image, s_text, t_image, t_text)]
    expected = np.sum((rows[0] - rows[2]) ** 2, axis=1) + np.sum((rows[1] - rows[3]) ** 2, axis=1)
    found = in_float64(clip_kd.clip_features, s_image, s_text, t_image, t_text)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    there, back = (np.diag(log_softmax(rows[i] @ rows[j].T / 0.3)) for i, j in ((0, 3), (1, 2)))
    found = in_float64(clip_kd.clip_interactive, s_image, s_text, t_image, t_text, temperature=0.3)
    np.testing.assert_allclose(found, -(np.mean(there) + np.mean(back)) / 2, rtol=1e-12)
    with pytest.raises(ValueError, match="shape"):
        clip_kd.clip_features(s_image, s_text, t_image, t_text[:, :3])
    with pytest.raises(ValueError, match=r"embeddings have shape \(5, 2, 2\), expected \[B, D\]"):
        clip_kd.clip_interactive(*(x.reshape(5, 2, 2) for x in (s_image, s_text, t_image, t_text)))


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_the_crd_bank_is_updated_as_the_authors_do(case):
    options = json.loads((GOLDEN / "manifest.json").read_text())["methods"]["crd"]["cases"][case]["hyperparameters"]
    with np.load(GOLDEN / "crd.npz") as file:
        x = {k.split("/")[1]: file[k] for k in file.files if k.startswith(case)}
    student = x["student_feature"] @ x["s_kernel"] + x["s_bias"]
    teacher = x["teacher_feature"] @ x["t_kernel"] + x["t_bias"]
    with jax.enable_x64(True):
        bank = contrastive.CRDBank(*(x[k] for k in ("memory_s", "memory_t", "z_s_in", "z_t_in")))
        update = compiled(contrastive.crd_update, momentum=options["momentum"], temperature=options["tau"])
        new = update(bank, student, teacher, x["idx"])
        again = update(new, student[::-1], teacher, x["idx"])
    others = np.setdiff1d(np.arange(len(x["memory_s"])), x["y"])
    for side, z in (("student", "z_s_out"), ("teacher", "z_t_out")):
        rows = np.asarray(getattr(new, side))
        np.testing.assert_allclose(rows[x["y"]], x[f"memory_{side[0]}_new_rows"], rtol=1e-12)
        np.testing.assert_array_equal(rows[others], getattr(bank, side)[others])
        np.testing.assert_allclose(getattr(new, f"{side}_z"), x[z], rtol=1e-12)
        np.testing.assert_allclose(getattr(again, f"{side}_z"), x[z], rtol=1e-12)


def test_crd_with_a_set_normaliser_takes_each_example_alone():
    s, t = draw((3, 4), 14), draw((3, 4), 15)
    indices = np.array([[0, 5, 6], [1, 7, 8], [2, 9, 10]])
    bank = make_bank(z=20.0)
    alone = [run(contrastive.crd, s[i : i + 1], t[i : i + 1], indices[i : i + 1], bank)[0] for i in range(3)]
    np.testing.assert_allclose(run(contrastive.crd, s, t, indices, bank), alone, rtol=1e-5)


def test_crd_equals_its_formula_with_a_set_normaliser():
    s, t = draw((2, 4), 16), draw((2, 4), 17)
    indices, bank = np.array([[0, 5, 6, 5], [1, 7, 8, 9]]), make_bank(z=20.0)
    expected = 0.0
    for v, memory in ((s, bank.teacher), (t, bank.student)):
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
        o = np.exp(np.einsum("bd,bkd->bk", v, np.asarray(memory, np.float64)[indices]) / 0.3) / 20
        noise = 3 / 12
        expected -= np.log(o[:, 0] / (o[:, 0] + noise + 1e-7)) + np.log(noise / (o[:, 1:] + noise + 1e-7)).sum(1)
    np.testing.assert_allclose(in_float64(contrastive.crd, s, t, indices, bank, temperature=0.3), expected, rtol=1e-12)


def test_the_normaliser_is_a_constant_and_the_bank_keeps_its_types_under_jit():
    s, t = (draw((3, 4), seed).astype(np.float32) for seed in (18, 19))
    bank, indices = make_bank(), np.array([[0, 5, 6], [1, 7, 8], [2, 9, 10]])
    new = compiled(contrastive.crd_update, momentum=0.9)(bank, s, t, indices)
    row = 0.9 * bank.student[:3] + 0.1 * s / np.linalg.norm(s, axis=1, keepdims=True)
    np.testing.assert_allclose(new.student[:3], row / np.linalg.norm(row, axis=1, keepdims=True), rtol=1e-5)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), new) == jax.tree.map(lambda a: (a.shape, a.dtype), bank)
    fixed = bank._replace(student_z=new.student_z, teacher_z=new.teacher_z)

    total = differentiated(contrastive.crd, 0)
    for one, other in zip(total(s, t, indices, bank), total(s, t, indices, fixed), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_crd_is_finite_at_small_temperatures_and_for_zero_rows():
    s, t = draw((2, 4), 20).astype(np.float32), np.zeros((2, 4), np.float32)
    bank, indices = make_bank(z=3.0), np.array([[0, 5], [1, 7]])
    value, grads = differentiated(contrastive.crd, 0, 1, temperature=1e-3)(s, t, indices, bank)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_crd_indices_put_the_own_row_first_and_never_among_the_negatives():
    own = np.array([3, 0, 7], np.int32)
    indices = np.asarray(contrastive.crd_indices(jax.random.key(0), own, examples=8, negatives=500))
    np.testing.assert_array_equal(indices[:, 0], own)
    for row, first in zip(indices, own, strict=True):
        assert set(row[1:]) == set(range(8)) - {first}


def test_crd_init_starts_unset_with_rows_of_unit_length_on_average():
    bank = contrastive.crd_init(jax.random.key(1), examples=400, width=16)
    assert bank.student_z < 0
    assert bank.teacher_z < 0
    np.testing.assert_allclose(np.mean(np.sum(np.square(bank.student), axis=1)), 1, rtol=0.05)
    assert not np.array_equal(bank.student, bank.teacher)


def test_shapes_that_do_not_fit_are_named():
    s, bank, indices = np.zeros((3, 4)), make_bank(), np.zeros((3, 5), np.int32)
    with pytest.raises(ValueError, match=r"shape \(3, 4\).*shape \(3, 5\): project"):
        contrastive.info_nce(s, np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"expected \[B, D\]"):
        contrastive.clip(np.zeros((3, 2, 2)), np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match=r"queue has shape \(7, 5\).*shape \(3, 4\)"):
        contrastive.info_nce_queue(s, s, np.zeros((7, 5)))
    with pytest.raises(ValueError, match=r"bank has shapes \(12, 4\).*shape \(3, 6\)"):
        contrastive.crd(np.zeros((3, 6)), np.zeros((3, 6)), indices, bank)
    with pytest.raises(ValueError, match=r"indices have shape \(3, 1\)"):
        contrastive.crd(s, s, indices[:, :1], bank)
