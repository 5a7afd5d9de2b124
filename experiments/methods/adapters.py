"""Adapters: what is left to train when a network is carried over to other classes, by all layers or a few numbers.

    python experiments/methods/adapters.py --source npz:cifar100_{split}.npz
    python experiments/methods/adapters.py --source folder:PICTURES --classes 5 --new-classes 3 --ranks 1 2 4

A network learns the first `--classes` of the images. From there students of several seeds learn the classes after them,
of which few are labelled: by their last layer alone, by adapters of low rank (LoRA) on all convolutions too, or by all
layers. Beside them stand the same network from nothing, and logistic regression on pixels. The table has the number of
trained parameters; the old task with the adapters in place, which is as before again without them.

Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685
"""

import dataclasses

from jaxkd.experiment import TRAINING, check_choice, flag, launch
from jaxkd.experiment.domains import COUNT
from jaxkd.experiment.image_tasks import FROZEN, SMOKE, ImageTasks, ImageTasksConfig
from jaxkd.experiment.two_tasks import make_ways

WAYS = ("nothing", "frozen", "lora", "fine-tuned")


@dataclasses.dataclass(frozen=True)
class Config(ImageTasksConfig):
    name: str = "adapters"
    ways: tuple[str, ...] = flag(WAYS, "parts of the network that are trained; lora has a row for each rank", TRAINING)
    ranks: tuple[int, ...] = flag((1, 4), "ranks of the adapters", TRAINING, COUNT)
    adapted: tuple[str, ...] = flag(("stage.*kernel",), "patterns of the kernels that have adapters", TRAINING)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "ways", "way", WAYS)
        if len(set(self.ranks)) < len(self.ranks):
            raise ValueError(f"--ranks has a rank twice: {self.ranks}; give each once.")


SMALL = dict(SMOKE, name="adapters-smoke", ways=("lora",), ranks=(2,))


def make_all(config):
    """Name of a row -> its way: that of the flag, and for lora one of each rank."""
    ways, made = make_ways(frozen=FROZEN), {}
    for name in config.ways:
        if name == "lora":
            adapted = {f"lora-{r}": ways["fine-tuned"]._replace(rank=r, rules=config.adapted) for r in config.ranks}
            made.update(adapted)
        else:
            made[name] = ways[name]
    return made


def procedure(config, run, logger, plan) -> None:
    tasks, ways = ImageTasks(config, run, logger, plan), make_all(config)
    tasks.check(ways)
    tasks.add_floor()
    tasks.learn_old()
    for name, way in ways.items():
        tasks.learn(name, way)
    tasks.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
