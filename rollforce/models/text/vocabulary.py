"""Words of prompts in a small language."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from rollforce.errors import ConfigError


def tokenize(text: str, vocabulary: Mapping[str, Sequence[str]]) -> list[str]:
    """Split a prompt into words in lower case, without punctuation; none for "".

    Raises ConfigError for a word outside `vocabulary` (kind -> words); the message lists what is known."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())
    known = [word for kind in vocabulary.values() for word in kind]
    for word in words:
        if word not in known:
            near = get_close_matches(word, known, n=1, cutoff=0.6)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            kinds = "\n".join(f"  {kind}: {', '.join(members)}" for kind, members in vocabulary.items())
            raise ConfigError(
                f'the prompt has the word "{word}", which this model never learnt{hint}\nIt knows these words:\n{kinds}'
            )
    return words
