"""Published networks of the Hugging Face hub: from their folders and back, without PyTorch."""

from jaxkd.pytorch.huggingface.build import Pretrained, untrained
from jaxkd.pytorch.huggingface.find import find
from jaxkd.pytorch.huggingface.open import classifier, embedder, encoder, token_classifier
from jaxkd.pytorch.huggingface.save import save

__all__ = ["Pretrained", "classifier", "embedder", "encoder", "find", "save", "token_classifier", "untrained"]
