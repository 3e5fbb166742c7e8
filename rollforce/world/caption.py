"""The small language of the tiny world: captions of scenes, and what a caption asks for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from rollforce.errors import ConfigError
from rollforce.models.text.encoder import tokenize
from rollforce.world.scenes import Scene

NOUNS = {"ball": "ball", "sphere": "ball", "circle": "ball", "box": "box", "square": "box", "cube": "box",
         "star": "star", "heart": "heart"}
COLOUR_WORDS = {"red": "red", "orange": "orange", "yellow": "yellow", "green": "green", "blue": "blue",
                "purple": "purple", "violet": "purple"}
VERBS = {"bounces": "bounces", "bouncing": "bounces", "circles": "circles", "circling": "circles",
         "drifts": "drifts", "drifting": "drifts", "rolls": "rolls", "rolling": "rolls"}
DIRECTIONS = {"left": "left", "right": "right"}
PLACE_WORDS = {"hills": "hills", "hill": "hills", "sea": "sea", "ocean": "sea", "city": "city", "town": "city",
               "mountains": "mountains", "mountain": "mountains"}
TIME_WORDS = {"day": "day", "daytime": "day", "sunset": "sunset", "dusk": "sunset", "night": "night"}
SMALL_WORDS = ("a", "an", "the", "and", "at", "in", "by", "during", "over", "above", "to", "snowy")

KINDS: dict[str, tuple[str, ...]] = {"shapes": tuple(NOUNS), "colours": tuple(COLOUR_WORDS),
                                     "motions": (*VERBS, *DIRECTIONS), "places": tuple(PLACE_WORDS),
                                     "times": tuple(TIME_WORDS), "small words": SMALL_WORDS}  # fmt: skip
WORDS: tuple[str, ...] = tuple(word for kind in KINDS.values() for word in kind)
"""All words known, in a fixed order: a word's place here is its number in the text encoder."""
MEANINGS: dict[str, tuple[str, str]] = {word: (what, value) for what, words in {
    "place": PLACE_WORDS, "time": TIME_WORDS, "colour": COLOUR_WORDS, "shape": NOUNS, "verb": VERBS,
    "direction": DIRECTIONS}.items() for word, value in words.items()}

DROPPED = 0.08  # how often a caption leaves out the place, the time or the motion
DAY_DROPPED = 0.4  # daytime goes without saying


@dataclass(frozen=True)
class WishedThing:
    """What a text says about one thing; None where it does not say. `motion` may be half said: "rolls", "left"."""

    colour: str | None = None
    shape: str | None = None
    motion: str | None = None


@dataclass(frozen=True)
class Wish:
    """What a text asks for; None, or no things, where it does not say."""

    place: str | None = None
    time: str | None = None
    things: tuple[WishedThing, ...] = ()

    @property
    def count(self) -> int | None:
        """How many things the text names; None if it names none."""
        return len(self.things) or None


def wish_of(scene: Scene) -> Wish:
    """Return the wish that says everything about `scene`."""
    return Wish(scene.place, scene.time, tuple(WishedThing(t.colour, t.shape, t.motion) for t in scene.things))


def motion_fits(wished: str, motion: str) -> bool:
    """Return whether `motion` is what was wished, where a wish may be half said ("rolls", "left")."""
    return set(wished.split()) <= set(motion.split())


# -- writing -----------------------------------------------------------------------------------------------------------

_NOUN_CHOICES = {"ball": ("ball",) * 6 + ("sphere", "circle"), "box": ("box",) * 6 + ("square", "cube"),
                 "star": ("star",), "heart": ("heart",)}
_COLOUR_CHOICES = {"purple": ("purple",) * 5 + ("violet",)}
_PLACE_CHOICES = {
    "hills": ("over green hills",) * 3 + ("over the green hills", "above green hills", "over the hills",
                                          "over a green hill", "in the hills", "above the hill"),
    "sea": ("over the sea",) * 4 + ("above the sea", "by the sea", "over the ocean", "above the ocean"),
    "city": ("over the city",) * 3 + ("in the city", "above the city", "over a city", "over the town", "in the town"),
    "mountains": ("over snowy mountains", "over the snowy mountains", "over the mountains", "above snowy mountains",
                  "in the mountains", "over a snowy mountain", "by the mountain"),
}
_TIME_CHOICES = {"day": ("by day", "during the day", "in the daytime", "at daytime"),
                 "sunset": ("at sunset",) * 5 + ("at dusk", "during sunset"),
                 "night": ("at night",) * 5 + ("by night", "in the night")}


def caption(scene: Scene, rng_seed: int, full: bool = False) -> str:
    """Return a sentence about `scene`; another `rng_seed` words it otherwise. `full` leaves nothing out."""
    rng = np.random.default_rng(rng_seed)

    def pick(choices: tuple[str, ...]) -> str:
        return choices[int(rng.integers(len(choices)))]

    dropped = {"place": DROPPED, "motion": DROPPED, "time": DAY_DROPPED if scene.time == "day" else DROPPED}
    said = {part: full or rng.random() >= chance for part, chance in dropped.items()}
    where = pick(_PLACE_CHOICES[scene.place]) if said["place"] else ""
    when = pick(_TIME_CHOICES[scene.time]) if said["time"] else ""
    style, order = rng.random(), rng.random()
    clauses = []
    for thing in scene.things:
        colour = pick(_COLOUR_CHOICES.get(thing.colour, (thing.colour,)))
        article = "the" if rng.random() < 0.04 else "an" if colour[0] == "o" else "a"
        words = f"{article} {colour} {pick(_NOUN_CHOICES[thing.shape])}"
        clauses.append(f"{words} {_moves(thing.motion, style > 0.65, rng)}" if said["motion"] else words)
    if order < 0.08 and when:
        clauses[0], when = f"{when} {clauses[0]}", ""
    at = 0 if order > 0.5 else -1  # two things: the surroundings follow the first or close the sentence
    clauses[at] = " ".join(part for part in (clauses[at], where, when) if part)
    return " and ".join(clauses)


def _moves(motion: str, participle: bool, rng: np.random.Generator) -> str:
    verb, _, direction = motion.partition(" ")
    if participle:
        verb = {"bounces": "bouncing", "circles": "circling", "drifts": "drifting", "rolls": "rolling"}[verb]
    if direction and rng.random() < 0.12:
        direction = f"to the {direction}"
    return f"{verb} {direction}".strip()


# -- reading -----------------------------------------------------------------------------------------------------------

def parse(text: str) -> Wish:
    """Return what `text` asks for. ConfigError for no words, unknown words and texts that contradict themselves. `and`
    begins another thing; words about place and time belong to the whole picture wherever they stand."""
    whole: dict[str, str] = {}
    things: list[dict[str, str]] = [{}]
    words = tokenize(text, KINDS)
    if not words:
        raise ConfigError('the prompt is empty; write for example "a red ball bounces over green hills"')
    for word, following in pairwise([*words, ""]):
        if word == "and" and "shape" in things[-1]:
            things.append({})
        elif word in MEANINGS and not (word == "green" and PLACE_WORDS.get(following) == "hills"):
            what, value = MEANINGS[word]
            _say(whole if what in ("place", "time") else things[-1], what, value, text)
    return Wish(whole.get("place"), whole.get("time"), tuple(_thing(t) for t in things if t))


def _say(said: dict[str, str], what: str, value: str, text: str) -> None:
    if said.get(what, value) != value:
        raise ConfigError(f'the prompt "{text}" gives one {what} twice: "{said[what]}" and "{value}"; keep one, '
                          'or join two things with "and": "a red ball bounces and a blue star circles"')
    said[what] = value


def _thing(said: dict[str, str]) -> WishedThing:
    verb, direction = said.get("verb", ""), said.get("direction", "")
    if verb in ("bounces", "circles"):
        direction = ""  # these go nowhere: the direction is ignored, as it is in training
    return WishedThing(said.get("colour"), said.get("shape"), f"{verb} {direction}".strip() or None)
