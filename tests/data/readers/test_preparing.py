"""Downloading: no long waits, no TensorFlow, sentences for what goes wrong."""

import errno
import importlib
import io
import socket
import threading
import urllib.error

import numpy as np
import pytest

from jaxkd.data import open_source
from jaxkd.data.readers import preparing


@pytest.fixture
def offline(monkeypatch):
    """No name is known to any name server, and nothing may be connected to."""

    def refuse(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar100", "glue/sst2", "imdb_reviews"])
def test_offline_a_sentence_says_where_to_put_the_files(offline, tmp_path, name):
    with pytest.raises(ValueError, match="cannot be downloaded, no host answers") as caught:
        open_source(name, data_dir=tmp_path)
    message = str(caught.value)
    assert f"jaxkd.data.open_source({name!r}" in message
    assert f"copy that folder to {tmp_path}/{name}/" in message
    assert "npz:PATH" in message
    assert "\n" not in message
    assert not list(tmp_path.rglob("*")), "nothing half-made is left"


def test_a_name_server_that_never_answers_is_not_waited_for(monkeypatch):
    release = threading.Event()

    def hang(*args, **kwargs):
        release.wait(10)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr(preparing.urllib.request, "getproxies", dict)
    try:
        assert not preparing.reachable(["http://a.invalid/x", "http://b.invalid/y"], seconds=0.2)
        assert any(thread.name == "jaxkd-probe" for thread in threading.enumerate()), "the look-ups still hang"
    finally:
        release.set()
        for thread in threading.enumerate():
            if thread.name == "jaxkd-probe":
                thread.join(10)


@pytest.mark.parametrize(("code", "answer"), [(403, True), (404, True), (503, False)])
def test_a_host_answers_unless_with_a_server_error(monkeypatch, code, answer):
    asked = []

    def urlopen(request, timeout):
        asked.append(request.full_url)
        raise urllib.error.HTTPError(request.full_url, code, "", {}, io.BytesIO())

    monkeypatch.setattr(preparing.urllib.request, "urlopen", urlopen)
    assert preparing.reachable(["http://a/1", "http://a/2", "http://b/3"]) is answer
    assert len({url.split("/")[2] for url in asked}) == len(asked), "one request a host"


def test_one_answering_host_is_enough(monkeypatch):
    def urlopen(request, timeout):
        if "good" not in request.full_url:
            raise urllib.error.URLError("no")
        return io.BytesIO()

    monkeypatch.setattr(preparing.urllib.request, "urlopen", urlopen)
    assert preparing.reachable(["http://bad/1", "http://good/2"])


def test_files_to_be_fetched_by_hand_are_named(offline, tmp_path):
    with pytest.raises(
        ValueError, match=r"imagenet2012 has files that must be fetched by hand into .*manual: .*train.tar"
    ):
        open_source("imagenet2012", data_dir=tmp_path, image_size=8)


@pytest.fixture
def small_fashion(monkeypatch, tmp_path):
    """TFDS's own Fashion-MNIST builder, given tiny files in place of downloads."""
    module = importlib.import_module("tensorflow_datasets.image_classification.mnist")
    monkeypatch.setattr(module, "_TRAIN_EXAMPLES", 7)
    monkeypatch.setattr(module, "_TEST_EXAMPLES", 3)
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28, 1), dtype=np.uint8)
    labels = np.arange(10, dtype=np.uint8)

    def fetch(self, urls):
        files = {}
        for key, url in urls.items():
            rows = slice(0, 7) if "train" in key else slice(7, 10)
            body = bytes(16) + images[rows].tobytes() if "images" in url else bytes(8) + labels[rows].tobytes()
            files[key] = tmp_path / key
            files[key].write_bytes(body)
        return files

    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fetch)
    monkeypatch.setattr(preparing, "reachable", lambda urls: True)
    return images, labels


def test_fashion_mnist_is_prepared_without_tensorflow(small_fashion, tmp_path, capfd):
    images, labels = small_fashion
    source = open_source("fashion_mnist", "train", data_dir=tmp_path)
    batch = source.read(np.arange(7))
    order = np.argsort(batch["label"])  # TFDS shuffles the rows
    np.testing.assert_array_equal(batch["image"][order], images[:7])
    np.testing.assert_array_equal(batch["label"][order], labels[:7])
    assert capfd.readouterr().out == ""
    tensorflow = importlib.import_module("tensorflow_datasets.core.utils.lazy_imports_utils").tensorflow
    assert "_module" not in tensorflow.__dict__, "the stand-in is taken away again"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("odd\nlines")])
def test_a_failed_preparation_is_not_tripped_over(small_fashion, tmp_path, monkeypatch, failure):
    def fail(*args, **kwargs):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_stand_in", fail)
        with pytest.raises(
            ValueError, match=r"fashion_mnist cannot be prepared .*(No space left|odd).*npz:PATH"
        ) as caught:
            open_source("fashion_mnist", data_dir=tmp_path)
        assert "\n" not in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(preparing.Image, "fromarray", fail)
        with pytest.raises(
            ValueError, match=r"fashion_mnist cannot be prepared .*(No space left|Failed to encode example).*npz:PATH"
        ):
            open_source("fashion_mnist", data_dir=tmp_path)
    assert open_source("fashion_mnist", data_dir=tmp_path).size == 7
