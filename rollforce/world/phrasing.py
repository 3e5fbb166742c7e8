"""Free wording: a prompt as people write it becomes a caption that the bundled model draws well.

A caption that says a colour, a shape and a motion of each thing stays as it is, to the byte. Other prompts are read
word by word (`synonyms.py`), in any order, and what they leave out is filled in, always in the same way, with what the
model draws best by the oracle: without a colour it draws nothing at all, what bounces or circles is never out of
sight, of two things one rolls and one circles. What cannot be is refused with a sentence that can be pasted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

from rollforce.errors import ConfigError
from rollforce.models.text.encoder import list_words, split_words
from rollforce.world.caption import KINDS, WORDS, Wish, WishedThing, parse
from rollforce.world.synonyms import JOINTS, Meaning, is_plural, read_word

MOST = 2  # things in one picture
COLOUR_OF = {"ball": "red", "box": "purple", "star": "orange", "heart": "red"}
MOTION_OF = {"ball": "bounces", "box": "bounces", "star": "circles", "heart": "bounces"}
PARTNER_OF = {"bounces": "drifts left", "circles": "rolls left", "drifts": "circles", "rolls": "circles"}
"""How a second thing moves beside one that moves so; a thing that rolls and one that circles are drawn best."""
PLACE_PHRASES = {"hills": "over green hills", "sea": "over the sea", "city": "over the city",
                 "mountains": "over snowy mountains"}  # fmt: skip
TIME_PHRASES = {"day": "by day", "sunset": "at sunset", "night": "at night"}


def complete(text: str) -> str:
    """Return the caption that a prompt is shown as: itself, if it says a colour, a shape and a motion of each thing.

    ConfigError for what the world does not have, and for texts that contradict themselves; it ends with a sentence that
    says nearly the same and works."""
    words = split_words(text)
    if not words:
        raise ConfigError(f'the prompt {text!r} has no words; write for example "{write(fill(Wish()))}"')
    if all(word in WORDS for word in words):
        wish = _parse(text)
        if wish is not None and is_complete(wish):
            return text
    reading = read(words)
    shown = write(fill(reading.wish))
    if reading.problems:
        raise ConfigError(f'the prompt "{text}" {"; ".join(reading.problems)}; try "{shown}"{list_words(KINDS)}')
    return shown


def is_complete(wish: Wish) -> bool:
    """Return whether a wish says of each thing, of one or two, all that the model needs to draw it."""
    return 0 < len(wish.things) <= MOST and all(
        thing.colour and thing.shape and thing.motion and _moves(thing.motion) for thing in wish.things)  # fmt: skip


def _parse(text: str) -> Wish | None:
    try:
        return parse(text)
    except ConfigError:
        return None


def _moves(motion: str) -> bool:
    verb, _, direction = motion.partition(" ")
    return verb in ("bounces", "circles") or (verb in ("drifts", "rolls") and bool(direction))


def write(wish: Wish) -> str:
    """Return the plainest caption of a wish that says everything."""
    first, *others = [f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.shape} {thing.motion}"
                      for thing in wish.things]  # fmt: skip
    return f"{' and '.join([first, *others])} {PLACE_PHRASES[wish.place or 'hills']} {TIME_PHRASES[wish.time or 'day']}"


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass
class Reading:
    """What was understood of a text: what it wishes, or the nearest to that, and why that is not the same."""

    wish: Wish = field(default_factory=Wish)
    problems: list[str] = field(default_factory=list)


@dataclass
class _Clause:
    """The words about one thing; `plural` if they name several of it."""

    said: dict[str, str] = field(default_factory=dict)
    plural: bool = False


def read(words: list[str]) -> Reading:
    """Return what words in lower case, in any order, ask for. Of two contradicting ones the first holds."""
    meanings = [(word, read_word(word)) for word in words]
    reading, whole, clauses = Reading(problems=_lacking(meanings)), dict[str, str](), [_Clause()]
    count = 1
    for (word, meaning), (_, following) in pairwise([*meanings, ("", Meaning("filler"))]):
        what, clause = meaning.what, clauses[-1]
        if what == "number":
            count = int(meaning.value)
        elif word in JOINTS and "shape" in clause.said:
            clauses.append(_Clause())
        elif what in ("place", "time"):
            _say(whole, what, meaning.value, reading.problems)
        elif what == "colour" and following.what in ("place", "time"):
            continue  # green hills, a red sunset
        elif what not in ("filler", ""):
            clauses[-1] = _add(clauses, word, meaning, reading.problems)
    count = max(count, _total(clauses))
    things = _count(_merge(clauses, reading.problems), count, reading.problems)
    reading.wish = Wish(whole.get("place"), whole.get("time"), tuple(things))
    return reading


def _lacking(meanings: list[tuple[str, Meaning]]) -> list[str]:
    """Return what is to be said of words that the model never learnt; nothing if there are none."""
    lacking = dict.fromkeys(f'"{word}" ({meaning.lack})' for word, meaning in meanings if meaning.lack)
    if not lacking:
        return []
    words = "words that this model never learnt: " if len(lacking) > 1 else "the word "
    end = "" if len(lacking) > 1 else ", which this model never learnt"
    return [f"has {words}{', '.join(lacking)}{end}"]


def _add(clauses: list[_Clause], word: str, meaning: Meaning, problems: list[str]) -> _Clause:
    """Take a word into the last clause, or into a new one where it begins one; return that."""
    clause, what, value = clauses[-1], meaning.what, meaning.value
    if what == "verb" and value == "circles" and word in ("circle", "circles") and "shape" not in clause.said:
        what, value = "shape", "ball"  # a noun, where no thing was named yet
    if what == "colour" and clause.said.get("colour", value) != value and "shape" not in clause.said:
        clauses.append(clause := _Clause())  # red and blue balls
    clause.plural |= what == "shape" and is_plural(word)
    _say(clause.said, what, value, problems)
    return clause


def _say(said: dict[str, str], what: str, value: str, problems: list[str]) -> None:
    if said.setdefault(what, value) != value:
        problems.append(f'gives one {what} twice ("{said[what]}" and "{value}"; what changes later is another prompt, '
                        "--at)")  # fmt: skip


def _merge(clauses: list[_Clause], problems: list[str]) -> list[_Clause]:
    """Return the clauses that name a thing; what stands in others belongs to the one before, or to the next."""
    merged: list[_Clause] = []
    waiting = _Clause()
    for clause, following in pairwise([*clauses, _Clause()]):
        if "shape" not in clause.said and "colour" in clause.said and following.plural:
            clause = replace(clause, said=clause.said | {"shape": following.said["shape"]})
        if "shape" in clause.said:
            merged.append(_Clause(dict(waiting.said), clause.plural))
            _take(merged[-1], clause, problems)
            waiting = _Clause()
        elif merged:
            _take(merged[-1], clause, problems)
        else:
            _take(waiting, clause, problems)
    return merged or ([waiting] if waiting.said else [])


def _take(clause: _Clause, other: _Clause, problems: list[str]) -> None:
    for what, value in other.said.items():
        _say(clause.said, what, value, problems)


def _total(clauses: list[_Clause]) -> int:
    """Return how many things clauses name that have a shape each, a plural for two; 0 where they share one."""
    own = len(clauses) > 1 and all("shape" in clause.said for clause in clauses)
    return sum(1 + clause.plural for clause in clauses) if own else 0


def _count(clauses: list[_Clause], count: int, problems: list[str]) -> list[WishedThing]:
    """Return the things of a text: of a plural or a number two that differ in colour; never more than MOST."""
    colour = clauses[0].said.get("colour") if clauses else None
    if len(clauses) == 1 and (count > 1 or (clauses[0].plural and not colour)):
        clauses = [clauses[0], _Clause({what: word for what, word in clauses[0].said.items() if what != "colour"})]
        if colour:
            problems.append(f"wants two things that are {colour}, which would melt into one")
    if len(clauses) > MOST or count > MOST:
        problems.append(f"wants more than {MOST} things, the most that one picture holds here")
    return [_thing(clause.said) for clause in clauses[:MOST]]


def _thing(said: dict[str, str]) -> WishedThing:
    verb, direction = said.get("verb", ""), said.get("direction", "")
    verb = verb or ("drifts" if direction else "")
    if verb in ("drifts", "rolls"):
        verb = f"{verb} {direction or 'left'}"
    return WishedThing(said.get("colour"), said.get("shape"), verb or None)


# -- filling in --------------------------------------------------------------------------------------------------------


def fill(wish: Wish) -> Wish:
    """Return a wish that says everything: what was said, and the same choice each time for what was not."""
    taken = {thing.colour for thing in wish.things} - {None}
    things: list[WishedThing] = []
    for thing in wish.things or (WishedThing(),):
        shape = thing.shape or "ball"
        things.append(replace(thing, shape=shape, colour=thing.colour or _pick_colour(shape, taken)))
        taken.add(things[-1].colour)
    return Wish(wish.place or "hills", wish.time or "day", tuple(_move(things)))


def _move(things: list[WishedThing]) -> list[WishedThing]:
    """Return things that all move: one alone as suits its shape, two as suits each other."""
    motions = [thing.motion for thing in things]
    if len(things) == 1:
        motions = [motions[0] or MOTION_OF[things[0].shape or "ball"]]
    elif None in motions:
        said = motions[0] or motions[1]
        partner = PARTNER_OF[said.split()[0]] if said else "circles"
        motions = [motion or partner for motion in (motions if said else ["rolls left", None])]
    return [replace(thing, motion=motion) for thing, motion in zip(things, motions, strict=True)]


def _pick_colour(shape: str, taken: set[str | None]) -> str:
    """Return the colour that a shape has where none is said, or another where that one is `taken`."""
    return next(colour for colour in (COLOUR_OF[shape], "yellow", "purple", "red") if colour not in taken)
