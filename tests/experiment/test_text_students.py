"""Students of text classifiers: their terms, their rates, arrays that a run keeps, and rows of the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, losses, models, objectives
from jaxkd.experiment import optimizers, text_costs, text_students, text_trials
from jaxkd.experiment.kept import kept
from jaxkd.types import Variables

TOKENS = {"tokens": jax.ShapeDtypeStruct((2, 3), "int32"), "token_mask": jax.ShapeDtypeStruct((2, 3), bool)}
BATCH = {**TOKENS, "label": jax.ShapeDtypeStruct((2,), "int32")}


def encoder(layers):
    model = models.bert(3, vocabulary=7, layers=layers, width=8, heads=2, max_length=4)
    return model, jax.eval_shape(model.init, jax.random.key(0), BATCH)


def test_every_method_has_a_term_that_fits_a_teacher_of_more_blocks():
    (big, variables), (small, own) = encoder(4), encoder(2)
    shape = text_students.shape_of(big, variables, 2)
    assert shape == (4, 2)
    with pytest.raises(ValueError, match="--blocks is 3 but the teacher has 4"):
        text_students.shape_of(big, variables, 3)
    both = ((small, own), (big, variables))
    outputs = [jax.eval_shape(lambda v, b, m=m: m.apply(v, b, None, False)[0], v, BATCH) for m, v in both]
    soft = {"kd": objectives.from_logits(losses.kd, temperature=2.0)}
    terms = text_students.method_terms(soft, 2, shape)
    assert {*terms, "theseus"} == set(text_students.METHODS)
    for term in terms.values():
        owned = jax.eval_shape(term.init, jax.random.key(0), *outputs, BATCH)
        value, *_ = jax.eval_shape(term.apply, owned, *outputs, BATCH, jax.random.key(0), jnp.zeros((), jnp.int32))
        assert value.shape == ()


def test_deeper_blocks_learn_faster_and_the_rate_ends_at_zero():
    _, variables = encoder(3)
    low = models.freeze(variables, text_students.EMBEDDINGS + "|^encoder/block0/")
    assert set(low.params) == {"encoder", "pooler", "head"}
    assert set(low.params["encoder"]) == {"block1", "block2"}
    params = jax.tree.map(lambda x: jnp.ones(x.shape), {"student": low.params, "term": {}})
    optimizer = text_students.fine_tuning_of(0.1, [1, 2])(20)
    state, moved = optimizer.init(params), []
    for _ in range(3):
        updates, state = optimizer.update(params, state, params)
        groups = {"head": updates["student"]["head"], **updates["student"]["encoder"]}
        moved.append({name: float(jnp.abs(jax.tree.leaves(x)[0]).max()) for name, x in groups.items()})
    assert moved[0] == dict.fromkeys(moved[0], 0.0)
    np.testing.assert_allclose(moved[2]["block2"] / moved[2]["head"], 0.8, rtol=1e-2)
    np.testing.assert_allclose(moved[2]["block1"] / moved[2]["head"], 0.64, rtol=1e-2)
    assert float(optimizers.warmed_up(0.1, 20)(20)) < 1e-7


def test_last_layers_begin_anew_and_differ():
    variables = Variables({"encoder": jnp.ones(2), "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}, {})
    found = text_students.fresh_heads(variables, jax.random.key(0), 2)
    assert found.params["head"]["kernel"].shape == (2, 2, 3)
    assert float(jnp.abs(found.params["head"]["kernel"][0] - found.params["head"]["kernel"][1]).min()) > 0
    np.testing.assert_array_equal(found.params["encoder"], np.ones((2, 2)))


class Folder:
    """A run as `kept` sees it."""

    def __init__(self, path):
        self.path, self.settle = path, lambda: None


def test_arrays_are_computed_once_and_a_damaged_file_is_named(tmp_path):
    calls = []

    def make():
        calls.append(1)
        return {"logits": np.eye(2), "p50": 0.5}

    first, second = (kept(Folder(tmp_path), "answers", make) for _ in range(2))
    assert calls == [1]
    np.testing.assert_array_equal(first["logits"], second["logits"])
    assert float(second["p50"]) == 0.5
    (tmp_path / "arrays" / "answers.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"answers\.npz cannot be read .*: delete it"):
        kept(Folder(tmp_path), "answers", make)


def test_rows_and_examples_of_the_table():
    assert text_costs.compared(np.eye(2), np.eye(2)[:, ::-1], np.array([0, 0])) == {"accuracy": 0.5, "agreement": 0.0}
    spent = {"parameters": 1234, "bytes": 4936, "p50": 1e-3, "p99": 2e-3}
    found = text_costs.row("bag", {"accuracy": np.array([0.8, 0.9]), "agreement": np.array([1.0, 1.0])}, spent)
    assert list(found) == list(text_costs.COLUMNS)
    assert list(found.values()) == ["bag", "85.00 ± 7.07", "100.00 ± 0.00", "1,234", "0.0", "1.00", "2.00"]
    texts = data.open_texts({"sentence": ["a", "b c", "d e f", "g h i"], "label": [0, 1, 0, 1]})
    rows = [np.arange(len(text.split()), dtype=np.int32) for text in texts.texts]
    encoded = data.Encoded(rows, [np.zeros_like(row) for row in rows], rows, [], 0, 0)
    source = data.from_tokens(texts, encoded, pad=0, vocabulary=9, buckets=(1, 2, 3))
    examples = text_costs.typical_examples(source)
    assert [set(one) for one in examples] == [{"tokens", "token_mask"}] * 2
    assert [one["tokens"].tolist() for one in examples] == [[[0, 1, 2]], [[0, 1, 2]]]


def test_sure_texts_join_the_labelled_ones_and_none_do_where_a_class_has_none():
    texts = data.open_texts({"sentence": ["a b", "b c"], "label": [0, 1]})
    more = data.phrases(texts, 4)

    def tokens(texts):
        rows = [np.arange(len(text.split()), dtype=np.int32) for text in texts.texts]
        encoded = data.Encoded(rows, [np.zeros_like(row) for row in rows], rows, [], 0, 0)
        return data.from_tokens(texts, encoded, pad=0, vocabulary=9)

    source = data.with_fields(tokens(texts), teacher_logits=np.eye(2, dtype=np.float32))
    logits = np.array([[5, 0], [0, 5], [0, 0.1]], np.float32)[: len(more)]
    union = text_trials.with_sure_texts(source, texts, more, logits, 0.9, tokens)
    fields = union.read(np.arange(union.size))
    assert fields["label"].tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(fields["teacher_logits"], np.concatenate([np.eye(2), logits[:2]]))
    assert text_trials.with_sure_texts(source, texts, more, logits[:, :1] * [1, 0], 0.9, tokens) is source
    assert text_trials.classes_of(texts) == 2
    with pytest.raises(ValueError, match="regression, not classes"):
        text_trials.classes_of(data.open_texts({"sentence": ["a", "b"], "label": [0.5, 1.5]}))
