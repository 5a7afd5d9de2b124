"""Alternating rounds of the benchmarks, and the tables that they write."""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "benchmarks"


@pytest.fixture(autouse=True, scope="module")
def here():
    """As for a script in that folder."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def test_peers_take_turns_and_each_is_first_in_turn():
    import _timing

    order = []

    def slow(name, seconds):
        def call():
            order.append(name)
            time.sleep(seconds)

        return call

    times = _timing.alternate({"a": slow("a", 0.002), "b": slow("b", 0.02)}, rounds=3, seconds=0)
    assert "".join(order) == "abbaab"
    assert np.all(times["b"] >= 0.02)
    assert times["a"].shape == (3,)


def test_tables_are_written_as_json_and_markdown(tmp_path, capsys):
    import json

    import _timing

    rows = [{"what": "x", "ms": _timing.spread([1.0, 2.0, 3.0]), "raw": np.arange(2)}]
    _timing.publish(str(tmp_path / "deep" / "t.json"), "A title", rows, {"what": "what", "ms": "ms"}, notes=["So."])
    written = json.loads((tmp_path / "deep" / "t.json").read_text())
    assert written["rows"] == [{"what": "x", "ms": "2 (1.5..2.5)", "raw": [0, 1]}]
    text = (tmp_path / "deep" / "t.md").read_text()
    assert text in capsys.readouterr().out
    assert "| x | 2 (1.5..2.5) |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "argument --rounds: 0: give at least 1"),
        (["--rounds", "x"], "argument --rounds: 'x' is no int"),
        (["--seconds", "nan"], "argument --seconds: nan: give a number above 0"),
        (["--depths", "8", "-1"], "argument --depths"),
        (["--pair", "foo"], "argument --pair: invalid choice: 'foo'"),
        (["--only", "kd", "foo"], "argument --only: invalid choice: 'foo'"),
        (["--out", ""], "argument --out: an empty text"),
    ],
)
def test_flags_of_benchmarks_have_domains_too(words, message, tmp_path, monkeypatch, capsys):
    import _timing

    def read(*words):
        monkeypatch.setattr(sys, "argv", ["x.py", "--out", str(tmp_path / "deep" / "t.json"), *words])
        return _timing.flags(
            "A benchmark.",
            smoke={"rounds": 1},
            rounds=(5, "rounds"),
            seconds=(0.5, "seconds"),
            depths=((8, 20), "depths"),
            pair=("resnet", "networks", {"resnet": 1, "mlp": 2}),
            only=((), "names", ("kd", "dkd")),
            out=("t.json", "figures"),
        )

    assert (read("--only", "kd").only, read("--smoke").rounds, read().only) == (["kd"], 1, ())
    assert (tmp_path / "deep").is_dir(), "made before anything is measured"
    with pytest.raises(SystemExit) as left:
        read(*words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_every_loss_has_inputs_and_its_gradient_is_translated_for_gpu_and_tpu():
    import argparse

    import loss_costs

    from jaxkd import losses

    sizes = loss_costs.sizes_of(argparse.Namespace(**loss_costs.SMALL))
    for name in losses.__all__:
        function, arrays = loss_costs.case(getattr(losses, name), sizes)
        traced = jax.jit(loss_costs.forward_and_gradient(function)["gradient"]).trace(*arrays)
        value, gradient = traced.out_info
        assert value.shape == (), name
        assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, arrays[0]), name
        traced.lower(lowering_platforms=("cuda", "tpu"))
