"""Write the API pages from the docstrings into build/api (`make docs`). Exit code 1 if anything warns."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import get_type_hints

import pdoc

import rollforce

PACKAGE = Path(rollforce.__file__).parent


def load_lazy_names() -> None:
    """Put what `import rollforce` leaves for later where pdoc looks for it: into the module and the annotations."""
    for name in rollforce.__all__:
        vars(rollforce)[name] = getattr(rollforce, name)
    # A dataclass's constructor repeats its parent's annotations as text that only the parent's module understands.
    rollforce.Model.__init__.__annotations__.update(get_type_hints(rollforce.Model))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/api"))
    out = parser.parse_args().out
    load_lazy_names()
    rooms = sorted(path.name for path in PACKAGE.iterdir() if any(path.glob("*.py")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)  # pdoc's own
        pdoc.render.configure(docformat="markdown", footer_text=f"rollforce {rollforce.__version__}")
        pdoc.pdoc("rollforce", *(f"rollforce.{room}" for room in ("errors", "config", *rooms)), output_directory=out)
    for warning in caught:
        sys.stderr.write(f"{warning.message}\n")
    sys.stdout.write(f"{out / 'rollforce.html'}, and {len(list(out.rglob('*.html')))} pages in all\n")
    return int(bool(caught))


if __name__ == "__main__":
    raise SystemExit(main())
