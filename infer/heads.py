"""Which heads of a model look far back: measures its attention and writes a file of head groups.

    python infer/heads.py tiny -o configs/heads/tiny.json
    rollforce render "a red ball rolls left" --stream forcing_kv heads.file=mine.json

The file says of each head of each layer which group it is of; what each group remembers is said in a stream's settings.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import rollforce
from rollforce.cache.head_groups import write_labels
from rollforce.errors import call_main
from rollforce.evaluation.memory.head_profile import Profile, label_heads, measure_near_shares
from rollforce.video.duration import parse_duration

PROMPTS = ["a red ball rolls left", "a blue star drifts right over green hills"]


def main(
    model: str,
    out: Annotated[Path, typer.Option("--out", "-o", help="the JSON file")],
    stream: Annotated[str | None, typer.Option(help="preset whose layout is walked; default: the model's own")] = None,
    prompt: Annotated[list[str], typer.Option(help="may be given several times")] = PROMPTS,
    seconds: Annotated[float, typer.Option(parser=parse_duration, metavar="TIME", help="of each stream: 6, 6s")] = 6.0,
    reach: Annotated[int, typer.Option(help="latents that a measured call attends to")] = Profile.reach,
    threshold: Annotated[float, typer.Option(help="share that makes a head a near one")] = Profile.threshold,
    plain: Annotated[int, typer.Option(help="lowest layers whose heads are all near")] = Profile.plain,
) -> None:
    profile = Profile(reach=reach, threshold=threshold, plain=plain)
    loaded = rollforce.load(model, stream=stream)
    shares = measure_near_shares(loaded, prompt, seconds, profile)
    labels = label_heads(shares, profile)
    far = sum(row.count(profile.far) for row in labels)
    description = (
        f"{loaded.name}: {profile.near} iff (attention on the call's own latents and the newest {profile.recent} "
        f"of the past) / (attention beyond the first {profile.first}) >= {threshold:g}, of {reach} latents, over "
        f"{len(prompt)} prompts x {seconds:g} s; layers below {plain} are {profile.near}"
    )
    write_labels(out, labels, description, shares=shares.tolist())
    for layer, row in enumerate(shares.tolist()):
        print(f"layer {layer}: " + "  ".join(f"{share:.2f}" for share in row))
    print(f"{far} of {shares.numel()} heads are {profile.far}: {out}")


if __name__ == "__main__":
    call_main(partial(typer.run, main))
