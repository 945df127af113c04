"""A test set of real questions: the 2,125 named characters of HTML, which Python knows (`html.entities`).

`python -m bench.questions FILE` writes it as JSON lines, CSV or Parquet.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.entities import html5

from app.datasets import Dataset


class Questions:
    """Each name with the characters it stands for."""

    def __iter__(self) -> Iterator[dict[str, str]]:
        for name, characters in sorted(html5.items()):
            if name.endswith(";"):
                yield {
                    "question": f"Which character does HTML call &{name} ? Answer with it alone.",
                    "answer": characters,
                }


if __name__ == "__main__":
    sys.stdout.write(f"{Dataset(Questions()).write(sys.argv[1])} questions\n")
