"""How a hard try ended, counted: a good result, a clear error, a wrong result without a word, or a crash.

RMD_HARD_USE=25 makes every hard test try 25 times as much as the suite does.
"""

import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field

EFFORT = int(os.environ.get("RMD_HARD_USE", "1"))
OUTCOMES = ("crash", "silent wrong result", "clear error", "good")
LONGEST = 1200
"""Characters of an error that can still be read; a path may be among them."""


class Wrong(AssertionError):
    """A try that ended in a crash or in a wrong result; the message shows the try."""


@dataclass
class Ledger:
    """Counts of outcomes by what was tried."""

    counts: dict = field(default_factory=lambda: defaultdict(Counter))

    def attempt(self, name, shown, action, judge):
        """Run `action`, judge its result, and count the outcome under `name`; `shown` is the try in words.

        An RMDError of one line is a clear error. `judge(result)` raises AssertionError for a result that its caller was
        not promised. Raises Wrong for a crash and for results of that kind.
        """
        try:
            result = action()
        except Exception as error:
            if not any(kind.__name__ == "RMDError" for kind in type(error).__mro__):  # the pack has its own copy of it
                self.counts[name]["crash"] += 1
                raise Wrong(f"{name} crashed with {type(error).__name__}: {error}\n{shown}") from error
            text = str(error)
            if "\n" in text or not 20 < len(text) < LONGEST:
                self.counts[name]["crash"] += 1
                raise Wrong(f"{name} gave no clear line: {text!r}\n{shown}") from error
            self.counts[name]["clear error"] += 1
            return
        try:
            judge(result)
        except Exception as error:
            self.counts[name]["silent wrong result"] += 1
            raise Wrong(f"{name} gave a wrong result: {error!r}\n{shown}") from error
        self.counts[name]["good"] += 1

    def table(self):
        """The counts as a table in Markdown, with a last line for all."""
        rows = [(name, self.counts[name]) for name in sorted(self.counts)]
        rows.append(("all", sum((count for _, count in rows), Counter())))
        lines = [f"| | tried | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * (len(OUTCOMES) + 1)]
        for name, count in rows:
            lines.append(f"| {name} | {sum(count.values())} | {' | '.join(str(count[kind]) for kind in OUTCOMES)} |")
        return "\n".join(lines)
