"""Render every prompt of a file, from Python: what `rollforce render --prompts` does, in the few lines it takes.

    python infer/render.py assets/prompts.txt --out videos --seconds 10
"""

from __future__ import annotations

import argparse
from pathlib import Path

import rollforce
from rollforce.checkpoints.outputs import hold
from rollforce.cli.prompt_files import read_jobs
from rollforce.errors import call_main
from rollforce.video.duration import duration_argument
from rollforce.video.values import check_arguments, make_folder
from rollforce.video.writer import VideoWriter, default_scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=Path, help="a .txt file (one prompt per line) or a .jsonl file")
    parser.add_argument("--out", type=Path, default=Path("videos"))
    parser.add_argument("--seconds", type=duration_argument, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="tiny", help="a bundled model's name, or a folder with model.yaml")
    chosen = parser.parse_args()

    check_arguments(chosen, seconds=("seconds",), seeds=("seed",))
    if not chosen.prompts.is_file():
        raise rollforce.ConfigError(f"{chosen.prompts} is not a file: name one with a prompt in each line.")
    jobs = read_jobs(chosen.prompts.read_bytes(), str(chosen.prompts), seed=chosen.seed, seconds=chosen.seconds)
    model = rollforce.load(chosen.model)
    for job in jobs:  # all of them before the first is made
        model.check_prompt(job.prompt)
    make_folder(chosen.out, "--out")
    for job in jobs:
        path = chosen.out / f"{job.name}.mp4"
        with (
            hold(path),
            model.session(job.prompt, seed=job.seed, cues=job.cues) as session,
            VideoWriter(path, model.fps, model.size, scale=default_scale(model.size)) as video,
        ):
            for chunk in session.stream(seconds=job.seconds):
                video.write(chunk.frames)
        print(f"{path}  {job.prompt}")


if __name__ == "__main__":
    call_main(main)
