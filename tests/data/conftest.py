"""Small TFDS sets, prepared once for a test session with the real library."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxkd.data.readers.preparing import quiet


@pytest.fixture(scope="session")
def png():
    """Makes a PNG file of pixels: TFDS itself needs TensorFlow to encode an array."""

    def run(pixels):
        file = io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
        file.seek(0)
        return file

    return run


@pytest.fixture(scope="session")
def prepare(tmp_path_factory):
    """Makes a function that prepares a TFDS set of given features and examples, and returns its folder."""
    import tensorflow_datasets as tfds

    def run(name, features, splits, file_format="array_record", supervised=None):
        class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=supervised,
                    disable_shuffling=True,
                )

            def _split_generators(self, dl_manager):
                return {split: iter(enumerate(examples)) for split, examples in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

        Builder.name = name
        builder = Builder(data_dir=tmp_path_factory.mktemp("tfds"), file_format=file_format)
        with quiet():
            builder.download_and_prepare()
        return builder.data_path

    return run


@pytest.fixture(scope="session")
def pictures():
    """Twenty RGB images of 6 by 5 pixels."""
    return np.random.default_rng(0).integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def picture_folder(prepare, pictures, png):
    """A TFDS set of those images, with further features of every kind."""
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(6, 5, 3)),
        "label": tfds.features.ClassLabel(num_classes=4),
        "box": tfds.features.BBoxFeature(),
        "weight": tfds.features.Scalar(np.float32),
        "id": tfds.features.Scalar(np.int64),
        "file_name": tfds.features.Text(),
        "ragged": tfds.features.Sequence(tfds.features.Scalar(np.int64)),
        "nested": {"depth": tfds.features.Scalar(np.int64)},
    }
    examples = [
        {
            "image": png(image),
            "label": i % 4,
            "box": tfds.features.BBox(0.0, 0.0, 0.5, i / 20),
            "weight": i / 2,
            "id": 1000 + i,
            "file_name": f"{i}.png",
            "ragged": list(range(i)),
            "nested": {"depth": i},
        }
        for i, image in enumerate(pictures)
    ]
    return prepare("pictures", features, {"train": examples[:15], "test": examples[15:]})


@pytest.fixture(scope="session")
def sentence_folder(prepare):
    """A TFDS set of pairs of sentences."""
    import tensorflow_datasets as tfds

    features = {
        "hypothesis": tfds.features.Text(),
        "premise": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["no", "yes"]),
        "idx": tfds.features.Scalar(np.int32),
    }
    examples = [{"premise": "é" * i, "hypothesis": f"h{i}", "label": i % 2, "idx": 100 + i} for i in range(10)]
    hidden = [{"premise": "p", "hypothesis": "h", "label": -1, "idx": 0}]
    return prepare("sentences", features, {"train": examples, "test": hidden})
