"""What people's words mean in the tiny world: its own words in other forms, synonyms, and the nearest it has.

Each table is made from the world's own vocabulary: a word of it, and its neighbours, in their plain form. Plurals,
tenses and participles are found by their endings, but for those that are irregular and stand here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from rollforce.world.caption import MEANINGS, WORDS

SYNONYMS = {
    "ball": "orb globe disc disk round sphere circle roundel", "box": "block crate brick square cube rectangle",
    "star": "asterisk", "heart": "",
    "red": "crimson scarlet ruby cherry vermilion reddish", "orange": "tangerine apricot",
    "yellow": "golden gold lemon yellowish", "green": "emerald lime greenish", "blue": "azure navy cobalt bluish",
    "purple": "violet lilac lavender mauve indigo",
    "bounces": "bounce jump leap leapt hop spring sprang bounding bob bouncy",
    "circles": "circled circling circle orbit revolve loop encircle", "rolls": "roll tumble",
    "drifts": "drift float fly flies flew flown glide sail hover soar waft",
    "left": "leftward leftwards", "right": "rightward rightwards",
    "hills": "hill hilltop hilly hillside", "sea": "ocean seaside coast shore seashore waves",
    "city": "town skyline downtown street metropolis", "mountains": "mountain alps peak summit mountainous",
    "day": "daytime daylight noon midday afternoon sunny", "sunset": "dusk sundown evening twilight",
    "night": "midnight nighttime nightfall moonlight moonlit starry",
    "a": "an another one single",
}  # fmt: skip
"""A word of the world -> words for which it is taken."""
NEAREST = {
    "ball": "balloon bubble ring hoop wheel planet moon sun egg apple dot oval donut marble pebble stone rock ellipse",
    "box": "diamond rhombus hexagon pentagon house door book lego tile suitcase present gift robot triangle pyramid",
    "star": "cross spark snowflake sparkle comet meteor flower", "heart": "love valentine leaf",
    "red": "pink rose maroon brown", "orange": "amber bronze copper", "yellow": "white beige cream silver bright",
    "green": "olive mint", "blue": "turquoise cyan teal aqua black grey gray", "purple": "magenta fuchsia plum",
    "bounces": "fall fell drop dance shake vibrate",
    "circles": "spin spun rotate turn twirl swirl whirl swing", "rolls": "slide slid walk run ran drive",
    "drifts": "move travel go goes went cross swim swam wander rise rest sit lie stand stay",
    "hills": "meadow field grass forest wood jungle desert dune garden park valley farm countryside savanna island",
    "sea": "beach lake river water pond harbour harbor bay underwater", "city": "village house building castle road",
    "mountains": "snow ice cliff volcano glacier canyon winter", "day": "morning summer light",
    "sunset": "dawn sunrise", "night": "dark darkness space galaxy universe",
}  # fmt: skip
"""A word of the world -> words that mean something else, to which it is the nearest that the world has."""
ABSENT = {
    "animals": "cat dog bird fish horse cow rabbit mouse mice lion tiger bear duck fox wolf snake frog whale elephant "
               "butterfly bee kitten puppy chick animal dragon",
    "people": "man men woman women child children girl boy person people baby king queen somebody",
    "vehicles": "car bus train boat ship plane airplane truck bike bicycle rocket helicopter",
    "plants": "tree rose bush plant palm",
}  # fmt: skip
"""What the world has none of -> words for it; the nearest is a ball."""
NUMBERS = {"two": 2, "pair": 2, "couple": 2, "both": 2, "three": 3, "four": 4, "five": 5, "six": 6,
           "seven": 7, "eight": 8, "nine": 9, "ten": 10, "dozen": 12, "hundred": 100, "many": 3, "several": 3,
           "few": 3}  # fmt: skip
JOINTS = {"and", "with", "plus", "beside", "behind", "next", "a", "an", "another"}
"""Words with which another thing may begin."""
FILLERS = """
    above across all along also animated animation around as at back background be beautiful become becomes been
    being big bigger bit by camera change clip color colored colors colour coloured cute down during each endless
    every everywhere fast flat for forth from front gently giant great has have here high i image in into is it its
    just landscape large let's like little long lot low me my near nice not object of off on onto or other our out
    over past picture please pretty quickly render scene scenery see shape shaped shiny show showing shows simple
    sky slow slowly small smooth smoothly snowy soft softly some something still that the their them then there they
    thing this through tiny to together toward towards under until up upwards very video view want we when where
    which while whole wide world you your
    """
"""Words that say nothing which the world could show otherwise: they are left out."""
LONGEST = 30  # letters of a word whose spelling is compared


@dataclass(frozen=True)
class Meaning:
    """What a word means here. `what` is place, time, colour, shape, verb, direction, number, filler, or "" for nothing.

    `value` is the world's own word; `lack` says what the world lacks, where that is only the nearest."""

    what: str
    value: str = ""
    lack: str = ""


def read_word(word: str) -> Meaning:
    """Return what a word in lower case means; of one that nothing is known of, what is spelt nearly so."""
    for form in forms(word):
        if form in _KNOWN:
            return _KNOWN[form]
    if 2 < len(word) <= LONGEST and (alike := get_close_matches(word, MEANINGS, n=1, cutoff=0.75)):
        return Meaning(*MEANINGS[alike[0]], lack=f'did you mean "{alike[0]}"?')
    return Meaning("", lack="nothing here is like it")


def forms(word: str) -> Iterator[str]:
    """Yield a word, and what it may be a plural, a tense or a participle of: "leaping" is "leap"."""
    yield word
    word = word.removesuffix("'s")
    yield word
    for ending in ("s", "es", "ed", "d", "ing", "ly"):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) > 2:
            yield stem
            yield f"{stem}e"
            if stem[-1] == stem[-2]:
                yield stem[:-1]
    if word.endswith("ies"):
        yield f"{word[:-3]}y"


def is_plural(word: str) -> bool:
    """Return whether a word names several of a shape."""
    return word.endswith("s")


def _tabulate() -> Mapping[str, Meaning]:
    table = {filler: Meaning("filler") for filler in (*FILLERS.split(), *JOINTS)}
    table |= {word: Meaning("number", str(number)) for word, number in NUMBERS.items()}
    for kind, words in ABSENT.items():
        table |= dict.fromkeys(words.split(), Meaning("shape", "ball", f"there are no {kind} here"))
    for ours, words in NEAREST.items():
        table |= dict.fromkeys(words.split(), Meaning(*MEANINGS[ours], lack=f'the nearest is "{ours}"'))
    for ours, words in SYNONYMS.items():
        meaning = Meaning(*MEANINGS[ours]) if ours in MEANINGS else Meaning("filler")
        table |= dict.fromkeys(words.split(), meaning)
    return table | {word: Meaning(*MEANINGS[word]) if word in MEANINGS else Meaning("filler") for word in WORDS}


_KNOWN = _tabulate()
