"""Published networks of the Hugging Face hub: from their folders and back, without PyTorch."""

from jaxkd.pytorch.huggingface.find import find
from jaxkd.pytorch.huggingface.open import Pretrained, classifier, embedder, encoder

__all__ = ["Pretrained", "classifier", "embedder", "encoder", "find"]
