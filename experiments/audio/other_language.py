"""A network for spoken words is carried over to another language, of which there are few labels.

    pip install --no-deps espeakng-loader
    python experiments/audio/other_language.py --source "npz:fsdd/{split}.npz" --language de
    python experiments/audio/other_language.py --source folder:words --language fr --words oui non stop --per-class 3
    python experiments/audio/other_language.py --source folder:words --other-source csv:mots.csv --other-held-out anne

Recordings of people in the first language train the network that is carried over. The other language is SYNTHESISER
SPEECH, made by eSpeak NG in 16 voices at several speeds and pitches, which shows the way, and says nothing about people
who speak that language; --other-source names recordings of people in its place. Speakers of the test are in no
training. Compared for each number of labels a word: a linear classifier of log-mel spectra, the network from scratch,
the carried one with a new last layer that alone is trained, and the carried one that is trained on as a whole.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, losses, models, objectives
from jaxkd.experiment import DATA, NETWORKS, TRAINING, Context, check_choice, flag, launch
from jaxkd.experiment.domains import COUNT, POSITIVE
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields import speech, synthesiser
from jaxkd.experiment.fields.recordings import sounds_of
from jaxkd.experiment.fields.tones import TONES
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.transfer import last_layer
from jaxkd.experiment.trials import Trials

KINDS = ("scratch", "last-layer", "carried")
LABEL = objectives.from_labels(losses.cross_entropy)


@dataclasses.dataclass(frozen=True)
class Config(speech.SpeechConfig):
    name: str = "other-language"
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    other_source: str | None = flag(None, "recordings of the other language; a synthesiser if absent", DATA)
    other_held_out: tuple[str, ...] = flag((), "speakers of --other-source to test on, as --held-out", DATA)
    language: str = flag("de", "voice of the synthesiser, such as de, fr, es, it, nl", DATA)
    words: tuple[str, ...] = flag(tuple("0123456789"), "words to tell apart; digits are read in the language", DATA)
    takes: int = flag(6, "recordings of a word in each voice", DATA, COUNT)
    per_class: tuple[int, ...] = flag((1, 5), "labels of each word", DATA, COUNT)
    networks: tuple[str, ...] = flag(KINDS, "kinds of networks, of " + ", ".join(KINDS), NETWORKS)
    width: int = flag(48, "channels of the network", NETWORKS, COUNT)
    blocks: int = flag(3, "blocks of the network", NETWORKS, COUNT)
    kernel: int = flag(7, "frames under each kernel", NETWORKS, COUNT)
    first_steps: int = flag(600, "updates in the first language", TRAINING, COUNT)
    steps: int = flag(200, "updates in the other language", TRAINING, COUNT)
    learning_rate: float = flag(6e-3, "highest rate of AdamW from scratch", TRAINING, POSITIVE)
    carried_rate: float = flag(2e-3, "highest rate of AdamW in a network that is carried over", TRAINING, POSITIVE)
    head_rate: float = flag(0.1, "rate of SGD with momentum in a last layer that is trained alone", TRAINING, POSITIVE)
    seeds: int = flag(3, "networks of each kind, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "networks", "kind of network", KINDS)
        if self.other_held_out and self.other_source is None:
            raise ValueError(f"--other-held-out is {self.other_held_out} but there is no --other-source: give it too.")


SMALL = dict(name="other-language-smoke", source="tones", seconds=0.2, width=4, blocks=1, kernel=3, seeds=1)
SMALL |= dict(batch_size=8, first_steps=2, steps=2, per_class=(2,), networks=KINDS[2:])


def other_task(config, first) -> speech.Task:
    """Words of the other language, heard as in the first one; some speakers, or four voices, are held out."""
    if config.other_source is not None:
        people = dataclasses.replace(config, held_out=config.other_held_out, validation_speakers=())
        spoken = sounds_of(config, config.other_source, rate=first.rate)
        return speech.task_of(*speech.split_sounds(people, spoken), config, like=first)
    if config.source == TONES:  # a smoke run needs no synthesiser
        return first
    spoken = synthesiser.speak(config.words, config.language, rate=first.rate, takes=config.takes, seed=config.seed)
    held_out = synthesiser.VOICES[::4]
    return speech.task_of(*data.split_by_speaker(spoken, held_out), config, like=first)


def procedure(config, run, logger, plan) -> None:
    first = speech.open_task(config)
    other = other_task(config, first)
    prepare = first.prepare(config, noisy=True), first.clean
    context = Context(run, logger, plan, config.seed, config.batch_size, *prepare, config)
    these = Trials(context, config.seeds, speech.COLUMNS, [])
    nets = [
        models.depthwise_net(task.train.num_classes, width=config.width, blocks=config.blocks, kernel=config.kernel)
        for task in (first, other)
    ]
    fit = adamw_of(config.learning_rate)(config.first_steps)
    # 1. The first language.
    known = these.fit("first-language", first.train, nets[0], LABEL, fit, config.first_steps)
    answering = predictor(context, nets[1])

    def score(variables):
        """Accuracy of one network over the noise."""
        answer = answering(variables)
        return speech.scores(other, lambda source: answer(source)[1])

    # 2. The other language.
    for count in config.per_class:
        few = data.few_labels(other.train, count, seed=config.seed)
        batch = few.read(np.arange(2)) | {"view": np.zeros(2, np.int32)}
        own = [models.init(nets[1], jax.random.key(seed), first.clean(batch)) for seed in range(config.seeds)]
        carried = jax.tree.map(lambda *x: jnp.stack(x), *[models.inherit(one, known) for one in own])
        found, parameters = speech.linear_floor(other._replace(train=few))
        these.add(f"linear on log-mel, {count} a word", found, parameters=parameters)
        kinds = {
            KINDS[0]: (adamw_of(config.learning_rate)(config.steps), {}),
            KINDS[1]: (last_layer(config.head_rate, config.steps), {"start": carried}),
            KINDS[2]: (adamw_of(config.carried_rate)(config.steps), {"start": carried}),
        }
        for name in config.networks:
            optimizer, options = kinds[name]
            args = few, nets[1], LABEL, optimizer, config.steps, score
            these.teach(f"{name}-{count}-a-word", *args, **options)
    test = other.tests["clean"]
    these.conclude(title=f"{test.name}: {test.size:,} test recordings, {config.seeds} seed(s)")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
