"""Across tasks: a network of some classes learns others from few labels, and what becomes of the first ones.

    python experiments/methods/tasks.py --source npz:cifar100_{split}.npz
    python experiments/methods/tasks.py --source folder:PICTURES --classes 5 --new-classes 3 --ways fine-tuned lwf joint

The old task is the first `--classes` of the images, the new one those after them, of which few are labelled. A network
learns the old task once. From there students of several seeds learn the new one: its last layer alone, or all layers;
without forgetting (LwF: the old last layer goes on answering as before, on the new task's images), also with the
relations between images kept; with as few labels of the old task (joint), weighted equally or by trained uncertainties.
Beside them stand the same network from nothing, and logistic regression on pixels. Each is evaluated once, on the test
images of both tasks.

Reference: Li, Hoiem, "Learning without Forgetting", ECCV 2016, https://arxiv.org/abs/1606.09282
"""

import dataclasses

from jaxkd.experiment import TRAINING, check_choice, flag, launch
from jaxkd.experiment.domains import NON_NEGATIVE, TEMPERATURE
from jaxkd.experiment.image_tasks import FROZEN, SMOKE, ImageTasks, ImageTasksConfig
from jaxkd.experiment.two_tasks import make_ways

WAYS = ("nothing", "frozen", "fine-tuned", "lwf", "lwf-relations", "joint", "joint-uncertainty")


@dataclasses.dataclass(frozen=True)
class Config(ImageTasksConfig):
    name: str = "tasks"
    keep: float = flag(1.0, "weight of the old answers in learning without forgetting", TRAINING, NON_NEGATIVE)
    temperature: float = flag(2.0, "softmax temperature T of the old answers", TRAINING, TEMPERATURE)
    relations: float = flag(100.0, "weight of the kept relations between images", TRAINING, NON_NEGATIVE)
    ways: tuple[str, ...] = flag(WAYS, "ways to learn the new task", TRAINING)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "ways", "way", WAYS)


SMALL = dict(SMOKE, name="tasks-smoke", ways=("lwf-relations",))


def procedure(config, run, logger, plan) -> None:
    tasks = ImageTasks(config, run, logger, plan)
    tasks.add_floor()
    tasks.learn_old()
    ways = make_ways(config.keep, config.temperature, config.relations, frozen=FROZEN)
    for name in config.ways:
        tasks.learn(name, ways[name])
    tasks.conclude()


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
