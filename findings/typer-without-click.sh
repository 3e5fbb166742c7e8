#!/usr/bin/env bash
# A typer command is no click command any more, and `except click.ClickException` lets typer's errors through.
#
# Packages: typer 0.29.2, click 8.5.1 (Python 3.11).
# Guess: typer is built on click, as its documentation has always said: get_command returns a click.Command, typer.BadParameter
#        is click's, and click comes with it.
# Seen:  typer carries a copy, typer._click, and does not require click (but pydantic). Its commands, groups, contexts and
#        errors are classes of the copy: isinstance and except against click's are false, silently.
# It installs into a temporary folder, and fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "typer==0.29.2" "click==8.5.1"
cd "$folder"
venv/bin/python - <<'PYTHON'
from importlib.metadata import requires, version

import click
import typer

app = typer.Typer()


@app.command()
def double(number: int) -> None:
    typer.echo(2 * number)


command = typer.main.get_command(app)
needs = sorted(line.split(">")[0].split(";")[0].strip() for line in requires("typer") if "extra" not in line)
try:
    raise typer.BadParameter("as a callback of an option raises it")
except click.ClickException:
    caught = True
except Exception:
    caught = False
print("typer", version("typer"), "| requires", needs, "| command of", type(command).__mro__[1].__module__,
      "| a click.Command:", isinstance(command, click.Command), "| caught as click's:", caught)
assert "click" not in needs and "pydantic" in needs, "it requires other packages now"
assert not isinstance(command, click.Command) and not caught, "they are click's again"
PYTHON
echo "as recorded"
