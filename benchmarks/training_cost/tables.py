"""The tables of the results, and what is still to be measured on a GPU."""

from demo.comparison import table
from training.memory import GIB, gib

from .cases import FULL
from .parts import PARTS

GOAL = 1.25  # times the plain loop's speed, at the same batch


def speed_table(rows):
    """Time and memory of an update for each row that could be run."""
    head = [
        "",
        "batch",
        "trainer ms",
        "plain ms",
        "ratio",
        "quartiles",
        "counted",
        "trainer held",
        "plain held",
        "estimate",
    ]
    lines = []
    for name, row in rows.items():
        if "failed" in row:
            lines.append([name, row["batch"], row["failed"], *["-"] * (len(head) - 3)])
            continue
        lines.append(
            [
                name,
                row["batch"],
                f"{row['trainer_ms']:.0f}",
                f"{row['plain_ms']:.0f}",
                f"{row['ratio']:.2f}",
                f"{row['low']:.2f} to {row['high']:.2f}",
                f"{row['counted']:.2f}",
                gib(row["trainer_bytes"]),
                gib(row["plain_bytes"]),
                gib(row["estimated_bytes"]),
            ]
        )
    return table(head, lines)


def parts_table(rows):
    """Where the time goes, in milliseconds of an update."""
    lines = [
        [f"{name}, {way}", *(f"{row['parts'][way][part]:.1f}" for part in PARTS)]
        for name, row in rows.items()
        if "parts" in row
        for way in row["parts"]
    ]
    return table(["ms of an update", *PARTS], lines)


def targets_table(rows):
    """The aims at full size beside what was measured, or what is missing."""
    lines = []
    for case in FULL:
        row = rows.get(f"{case.name}, adapters", {})
        held = gib(row["trainer_bytes"]) if "trainer_bytes" in row else "missing"
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "missing"
        lines.append([case.name, f"below {gib(case.target * GIB)}", held, f"at least {GOAL}", ratio])
    return table(["adapters, batch 1", "memory, aim", "measured", "times as fast, aim", "measured"], lines)
