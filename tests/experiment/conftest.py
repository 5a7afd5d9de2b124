"""Modules that stand in experiments/cifar100, as its programs import them."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[2] / "experiments" / "cifar100"))
