"""YAML and overrides become dataclasses; what is wrong is named by its path, its value and its source."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollforce.config import build, resource, to_dict
from rollforce.errors import ConfigError


@dataclass(frozen=True)
class Sink:
    kind: Literal["sink"] = "sink"
    size: int = 3


@dataclass(frozen=True)
class Window:
    size: int
    kind: Literal["window"] = "window"
    positions: Literal["absolute", "realigned"] = "absolute"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}.")


@dataclass(frozen=True)
class Optimiser:
    rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)


@dataclass(frozen=True)
class Stream:
    cache: tuple[Sink | Window, ...]
    ladder: tuple[float, ...] = (1.0, 0.5)
    name: str | None = None
    compiled: bool = False
    folder: Path = Path("runs")
    optimiser: Optimiser = field(default_factory=Optimiser)
    weights: dict[str, float] = field(default_factory=dict)
    first: Sink | Window | None = None


YAML = """
cache:
  - kind: sink
  - {kind: window, size: 6}
ladder: [1, 0.75, 1e-1]
optimiser:
  rate: 2e-4
"""


def message(*sources: Any, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        build(Stream, *sources, overrides=overrides)
    return str(caught.value)


def test_yaml_becomes_a_tree_of_dataclasses() -> None:
    built = build(Stream, YAML)
    assert built == Stream((Sink(), Window(6)), (1.0, 0.75, 0.1), optimiser=Optimiser(2e-4))
    assert all(isinstance(sigma, float) for sigma in built.ladder)


def test_later_sources_win_key_by_key_and_lists_are_replaced(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("ladder: [1]\noptimiser: {betas: [0, 0.5]}\n")
    built = build(Stream, YAML, file, {"name": "third"})
    assert built.ladder == (1.0,)
    assert built.optimiser == Optimiser(2e-4, (0.0, 0.5))
    assert built.name == "third"


def test_another_kind_replaces_the_mapping() -> None:
    built = build(Stream, YAML, {"first": {"kind": "window", "size": 2}}, {"first": {"kind": "sink"}})
    assert built.first == Sink()


def test_overrides_reach_into_lists_and_parse_yaml() -> None:
    built = build(Stream, YAML, overrides=["cache.1.size=9", "ladder=[1, 0.25]", "name=abc", "optimiser.rate=1e-2"])
    assert built.cache[1] == Window(9)
    assert built.ladder == (1.0, 0.25)
    assert (built.name, built.optimiser.rate) == ("abc", 0.01)
    assert build(Stream, YAML, overrides=["cache=[{kind: sink, size: 1}]"]).cache == (Sink(size=1),)
    assert build(Stream, YAML, overrides=["name=null"]).name is None


@pytest.mark.parametrize(("override", "parts"), [
    ("cache.0.siez=4", ["cache.0.siez: unknown setting; did you mean 'size'?", "override cache.0.siez=4"]),
    ("laddr=[1]", ["laddr: unknown setting; did you mean 'ladder'?"]),
    ("zzzzzz=1", ["zzzzzz: unknown setting; it knows: cache, ladder"]),
    ("cache.5.size=1", ["there is no cache.5.size", "Nearest: cache.1.size"]),
    ("cache.1.size=six", ["cache.1.size: must be a whole number, got 'six'"]),
    ("cache.1.size=1.5", ["cache.1.size: must be a whole number, got 1.5"]),
    ("cache.1.size=true", ["must be a whole number, got True"]),
    ("cache.1.positions=realined", ["cache.1.positions: 'realined' is not one of absolute, realigned; did you mean"]),
    ("cache.0.kind=snik", ["cache.0.kind: 'snik' is not one of sink, window; did you mean 'sink'?"]),
    ("cache.1.size=0", ["cache.1: size must be at least 1, got 0.", "(override cache.1.size=0)"]),
    ("compiled=1", ["compiled: must be true or false, got 1"]),
    ("ladder=0.5", ["ladder: must be a list, such as [1, 2], got 0.5"]),
    ("ladder=[1, x]", ["ladder.1: must be a number, got 'x'"]),
    ("optimiser.betas=[1]", ["optimiser.betas: must hold 2 values, got 1"]),
    ("optimiser=3", ["optimiser: must hold settings (rate, betas), got 3"]),
    ("name=12", ['name: must be text, got 12. Write it in quotes: "12".']),
    ("ladder", ["'ladder' is not of the form key=value"]),
    ("=3", ["is not of the form key=value"]),
    ("ladder=[1", ["not valid YAML"]),
])
def test_a_bad_override_is_answered(override: str, parts: list[str]) -> None:
    text = message(YAML, overrides=(override,))
    for part in parts:
        assert part in text
    assert "\n" not in text


def test_the_source_file_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(YAML)
    bad.write_text("optimiser: {rat: 1}\n")
    text = message(good, bad)
    assert "optimiser.rat: unknown setting; did you mean 'rate'?" in text
    assert str(bad) in text and str(good) not in text
    bad.write_text("ladder: [1\n")
    assert "not valid YAML" in message(bad) and str(bad) in message(bad)
    assert "cannot be read" in message(tmp_path / "none.yaml")
    bad.write_text("- 1\n")
    assert "must hold `key: value` lines" in message(bad)


def test_a_missing_setting_and_a_missing_kind_are_named() -> None:
    assert "cache: is missing; it must be a list" in message({})
    assert "cache.0.size: is missing; it must be a whole number" in message({"cache": [{"kind": "window"}]})
    assert "cache.0.kind: is missing; it must be one of sink, window" in message({"cache": [{"size": 3}]})


def test_kind_may_be_left_out_where_there_is_no_choice() -> None:
    assert build(Window, {"size": 4}) == Window(4)
    assert "kind: 'sink' is not one of window" in _error_of(Window, {"size": 4, "kind": "sink"})


def _error_of(cls: type, source: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        build(cls, source)
    return str(caught.value)


def test_resources_are_found_and_a_missing_one_lists_its_neighbours() -> None:
    assert resource("configs/stream").is_dir()
    with pytest.raises(ConfigError, match=r"configs/nothing\.yaml is not shipped.*one of those in configs: .*stream"):
        resource("configs/nothing.yaml")


words = st.text(st.characters(codec="ascii", exclude_characters="$", exclude_categories=["Cc"]), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
tiers = st.builds(Sink, size=st.integers()) | st.builds(
    Window, size=st.integers(1, 10**9), positions=st.sampled_from(["absolute", "realigned"]))
streams = st.builds(
    Stream,
    cache=st.lists(tiers, max_size=4).map(tuple),
    ladder=st.lists(numbers, max_size=4).map(tuple),
    name=st.none() | words,
    compiled=st.booleans(),
    folder=st.sampled_from([Path("a"), Path("/b/c")]),
    optimiser=st.builds(Optimiser, numbers, st.tuples(numbers, numbers)),
    weights=st.dictionaries(st.text("abcdef", min_size=1, max_size=3), numbers, max_size=3),
    first=st.none() | tiers,
)


@given(streams)
def test_to_dict_and_build_are_inverse(stream: Stream) -> None:
    assert build(Stream, to_dict(stream)) == stream


@dataclass(frozen=True)
class Plain:
    kind: Literal["plain"] = "plain"
    size: int = 2


@dataclass(frozen=True)
class Fine:
    kind: Literal["fine"] = "fine"
    grain: int = 5


@dataclass(frozen=True)
class Chosen:
    way: Plain | Fine = field(default_factory=Plain)
    word: Literal["no", "bf16"] = "no"
    name: str = "x"


def test_another_kind_brings_its_own_defaults_wherever_the_override_stands() -> None:
    given = {"way": {"kind": "plain", "size": 3}}
    assert build(Chosen, given, overrides=["way.grain=7", "way.kind=fine"]).way == Fine(grain=7)
    assert build(Chosen, given, overrides=["way.kind=plain"]).way == Plain(size=3)


def test_words_that_yaml_takes_for_something_else() -> None:
    assert build(Chosen, overrides=["word=no", "name="]) == Chosen(name="")
    with pytest.raises(ConfigError, match="True is not one of no, bf16"):
        build(Chosen, overrides=["word=yes"])


def test_what_does_not_ship_lists_no_other_folder() -> None:
    with pytest.raises(ConfigError, match="There is no 'nope', and none ships with rollforce"):
        resource("nope")
