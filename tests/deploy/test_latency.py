"""What is timed, how often, and what is counted."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import deploy, models
from jaxkd.types import Model, Outputs, Variables


def test_percentiles_are_those_of_the_calls_after_the_first_round(monkeypatch):
    clock, given = [0.0], []

    def call(number):
        clock[0] += 1000.0 if number not in given else 2.0 if number else 1.0
        given.append(number)

    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", lambda: clock[0])
        found = deploy.timed(call, [0, 1, 1, 1], calls=200)
        single = deploy.timed(call, [0], calls=1)
    assert found == deploy.Latency(2.0, 2.0), "the first calls, which compile, are not among them"
    assert single == deploy.Latency(1.0, 1.0)
    assert given[-15:-11] == [0, 1, 1, 1]


@pytest.mark.parametrize(("inputs", "calls"), [([], 5), ([1], 0), ([1], True)])
def test_nothing_to_time_is_refused(inputs, calls):
    with pytest.raises(ValueError, match="give at least one of each"):
        deploy.timed(lambda x: x, inputs, calls=calls)


def test_a_network_is_given_one_example_at_a_time_in_evaluation_mode():
    seen = []

    def apply(variables, batch, key, train):
        assert key is None
        assert not train
        seen.append(batch["tokens"].shape)
        return Outputs(variables.params * batch["tokens"][:, :1].astype(jnp.float32)), {}

    model = Model(lambda key, batch: Variables(jnp.ones(()), {}), apply)
    batches = [{"tokens": np.ones((2, L), np.int32)} for L in (3, 5)]
    found = deploy.latency(model, model.init(jax.random.key(0), {}), *batches, calls=20)
    assert 0 < found.p50 <= found.p99
    assert seen == [(1, 3), (1, 5)], "one program for each length"


def test_bytes_are_those_of_all_arrays():
    batch = {"tokens": jnp.zeros((1, 4), jnp.int32), "token_mask": jnp.ones((1, 4), bool)}
    model = models.bert(2, vocabulary=10, layers=1, width=4, heads=1, max_length=4)
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    assert deploy.parameter_bytes(variables) == 4 * models.count_parameters(variables)
    assert deploy.parameter_bytes(Variables({"w": np.zeros(3, np.float16)}, {"n": np.zeros(2, np.int8)})) == 8
