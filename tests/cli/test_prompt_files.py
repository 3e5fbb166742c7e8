"""Prompt files: every bad line is listed, good ones get names that cannot collide."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollforce.cli.prompt_files import PromptJob, parse_cue, read_jobs, slug
from rollforce.engine.transitions import Blend, Cut, Flush
from rollforce.errors import ConfigError
from rollforce.streaming.events import Cue


def jobs(content: str | bytes, source: str = "prompts.jsonl") -> list[PromptJob]:
    return read_jobs(content.encode() if isinstance(content, str) else content, source, seed=7, seconds=10)


def test_text_files_with_every_line_ending_and_a_byte_order_mark() -> None:
    for text in ("a red ball\n\na blue star\n", "a red ball\r\n\r\n  a blue star  ",
                 "\ufeffa red ball\n# note\na blue star"):
        found = jobs(text, "prompts.txt")
        assert [job.prompt for job in found] == ["a red ball", "a blue star"]
        assert [(job.seed, job.seconds) for job in found] == [(7, 10.0)] * 2
    assert found[0].name == "0000-a-red-ball-seed7"
    assert found[1].where == "prompts.txt:3"


def test_a_line_of_its_own_settings() -> None:
    (job,) = jobs('{"id": "Koi pond!", "prompt": "a red ball", "seed": 3, "seconds": 2.5}')
    assert job == PromptJob("a red ball", 3, 2.5, "0000-koi-pond-seed3", "prompts.jsonl:1")


def test_every_bad_line_is_listed_at_once() -> None:
    lines = ['{"prompt": "a", "seconds": "ten"}', '{"prompt": "fine"}', '{"promt": "a"}', '{"prompt": ""}', "[1]",
             '{"prompt": "a", "seed": -1}', '{"prompt": "a", "seconds": 0}', '{"prompt": "a"',
             '{"prompt": "a", "id": 3}', '{"prompt": "a", "id": "x"}',
             '{"prompt": "b", "id": "x"}', '{"prompt": "a", "seed": true}']
    with pytest.raises(ConfigError) as caught:
        jobs("\n".join(lines))
    text = str(caught.value)
    for part in ("prompts.jsonl:1: seconds 'ten' is not a time",
                 ":3: promt: unknown setting; did you mean 'prompt'?", ":4: The prompt is empty.",
                 ":5: must hold settings (prompt, id, seed, seconds, at), got [1].", ":6: seed must be from 0",
                 ":7: seconds must be above 0", ":8: not valid JSON at column", ":9: id: must be text, got 3",
                 ":11: id 'x' is already used in line 10", ":12: seed: must be a whole number, got True"):
        assert part in text
    assert ":2:" not in text and ":10:" not in text


def test_changes_of_a_line() -> None:
    (job,) = jobs('{"prompt": "a", "at": [{"seconds": "9s", "seed": 4}, {"seconds": 5, "prompt": "b"}, '
                  '{"seconds": 7.5, "prompt": "c", "transition": {"kind": "blend", "chunks": 6}, "seed": 1}, '
                  '{"seconds": 0, "prompt": "d", "transition": "flush"}]}')  # fmt: skip
    assert job.cues == (Cue(0, "d", Flush()), Cue(5, "b"), Cue(7.5, "c", Blend(6), 1), Cue(9, seed=4))
    assert jobs('{"prompt": "a"}')[0].cues == ()


@pytest.mark.parametrize(("at", "words"), [
    ("3", "at: must be a list, such as [1, 2], got 3."),
    ("[3]", "at.0: must hold settings (seconds, prompt, transition, seed), got 3."),
    ('[{"seconds": 3}]', "the cue at 3 s changes nothing"),
    ('[{"prompt": "a"}]', "at.0.seconds: is missing"),
    ('[{"seconds": -3, "prompt": "a"}]', "at must be 0 or more and at most 1e+08 seconds (three years), got -3."),
    ('[{"seconds": true, "prompt": "a"}]', "at.0.seconds: must be a number or text, got True."),
    ('[{"seconds": "soon", "prompt": "a"}]', "'soon' is not a time"),
    ('[{"seconds": 3, "prompt": ""}]', "The prompt is empty."),
    ('[{"seconds": 3, "seed": -1}]', "seed must be from 0"),
    ('[{"seconds": 3, "prompt": "a", "how": "cut"}]', "at.0.how: unknown setting; it knows: seconds, prompt,"),
    ('[{"seconds": 3, "prompt": "a", "transition": "blnd"}]', "did you mean 'blend'?"),
    ('[{"seconds": 3, "prompt": "a", "transition": {"kind": "blend", "chunk": 6}}]', "did you mean 'chunks'?"),
    ('[{"seconds": 3, "prompt": "a", "transition": {"kind": "blend", "chunks": 0}}]', "must be at least 1"),
    ('[{"seconds": 3, "prompt": "a"}, {"seconds": 3, "prompt": "b"}]', "at: two changes at 3 s."),
    ('[{"seconds": 10, "prompt": "a"}]', "at: a change at 10 s, but the video ends at 10 s."),
])
def test_wrong_changes_are_listed(at: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        jobs(f'{{"prompt": "a"}}\n{{"prompt": "a", "at": {at}}}')
    assert words in str(caught.value) and str(caught.value).startswith("prompts.jsonl:2: ")


def test_lengths_are_times_with_an_end() -> None:
    (job,) = jobs('{"prompt": "a", "seconds": "1:30"}')
    assert job.seconds == 90
    for seconds, words in (("Infinity", "inf is for one video"), ('"inf"', "is not a time"), ("1e9", "at most 1e+08")):
        with pytest.raises(ConfigError, match=words.replace("+", r"\+")):
            jobs(f'{{"prompt": "a", "seconds": {seconds}}}')


def test_a_change_at_a_clock_time() -> None:
    assert parse_cue("1:30:a car") == Cue(90, "a car")
    assert parse_cue(" 0:07.5,cut:10:30 blue stars") == Cue(7.5, "10:30 blue stars", Cut())
    assert parse_cue("10:30 blue stars") == Cue(10, "30 blue stars")


def test_empty_and_binary_files_are_answered() -> None:
    with pytest.raises(ConfigError, match=r"prompts\.txt has no prompts"):
        jobs("\n \r\n# only a note", "prompts.txt")
    with pytest.raises(ConfigError, match="not UTF-8"):
        jobs(b"\xff\xfe\x00a", "prompts.txt")


anything = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map("a".__add__)


@given(st.lists(anything, min_size=1, max_size=5))
def test_names_are_plain_and_never_collide(prompts: list[str]) -> None:
    found = jobs("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    assert [job.prompt for job in found] == prompts
    assert len({job.name for job in found}) == len(prompts)
    assert all(set(job.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") and len(job.name) < 90 for job in found)


def test_a_slug_breaks_at_a_word() -> None:
    assert slug("A red ball; bounces/over: green hills") == "a-red-ball-bounces-over-green-hills"
    assert slug("word " * 30, longest=12) == "word-word"
    assert slug("鯉の池") == "video"
    assert slug("x" * 90) == "x" * 48
