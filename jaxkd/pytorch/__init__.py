"""Import and export of PyTorch weights, without PyTorch: names by rules, layouts by rank, files without code."""

from jaxkd.pytorch import huggingface
from jaxkd.pytorch.files import read_tensors, write_tensors
from jaxkd.pytorch.names import Rule
from jaxkd.pytorch.published import CIFAR100_BENCHMARK, TORCHVISION, Published
from jaxkd.pytorch.timm import TIMM, timm_network
from jaxkd.pytorch.weights import export_weights, import_weights, num_classes

__all__ = [
    "CIFAR100_BENCHMARK",
    "TIMM",
    "TORCHVISION",
    "Published",
    "Rule",
    "export_weights",
    "huggingface",
    "import_weights",
    "num_classes",
    "read_tensors",
    "timm_network",
    "write_tensors",
]
