"""Prompt files as other tools write them."""

from __future__ import annotations

import pytest

from rollforce.cli.prompt_files import read_jobs
from rollforce.errors import ConfigError


@pytest.mark.parametrize(("name", "content"), [
    ("list.json", '["a red ball", {"prompt": "a blue star, moving", "seed": 4}]'),
    ("-", ' [\n"a red ball",\n{"prompt": "a blue star, moving", "seed": 4}\n]'),
    ("list.yaml", "- a red ball\n- prompt: a blue star, moving\n  seed: 4\n"),
    ("t.csv", 'Caption,seed,id\r\na red ball,,\r\n\r\n"a blue star, moving",4,\r\n'),
    ("t.TSV", "seed\tprompt\n\ta red ball\n4\ta blue star, moving\n"),
])  # fmt: skip
def test_lists_and_tables(name: str, content: str) -> None:
    found = read_jobs(content.encode(), name, seed=7, seconds=2)
    assert [(job.prompt, job.seed) for job in found] == [("a red ball", 7), ("a blue star, moving", 4)]


@pytest.mark.parametrize(("name", "content", "said"), [
    ("a.json", '{"prompts": ["a"]}', "a.json must hold a list of prompts, such as"),
    ("a.json", '["a", 3]', "a.json:2: must hold settings (prompt,"), ("a.json", "[" * 9999, "a.json is not valid JSON"),
    ("a.yaml", "- !!python/object/apply:os.getcwd []", "a.yaml is not valid YAML: could not determine a constructor"),
    ("a.csv", "file,words\nx,y\n", "one column must be called prompt; the first line says file, words."),
    ("a.csv", "prompt,cfg\na ball,3\n", "a.csv:2: cfg: unknown setting"),
    ("a.csv", "prompt,seed\na ball, red,3\n", "a.csv:2: 3 cells, of 2 columns. Put text with commas in quotes."),
    ("a.csv", "prompt,seed\na ball,x\n", "a.csv:2: seed: must be a whole number"),
    ("a.txt", "[\n", "has no word in it"),
])  # fmt: skip
def test_what_is_no_list_is_answered(name: str, content: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_jobs(content.encode(), name, seed=0, seconds=2)
    assert said in str(caught.value)
