"""A picture of a pretraining: did it learn, and of which codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medbert.evaluate.figures import COLOURS, FONT


def draw(
    path: Path,
    *,
    losses: Sequence[float],
    references: Mapping[str, float],
    by_frequency: Sequence[Mapping[str, float]],
    at: Sequence[int] | None = None,
) -> None:
    """Writes a PNG: tuning losses (nats) by epoch (or ``at`` steps) beside those ``references``
    name, and the share of hidden codes found, where there are groups of codes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(FONT):
        figure = Figure(figsize=(9 if by_frequency else 4.5, 3.6), layout="constrained")
        panels = figure.subplots(1, 2 if by_frequency else 1, squeeze=False)[0]
        left, right = panels[0], panels[-1]
        epochs = at or range(1, len(losses) + 1)
        left.plot(epochs, losses, "o-", color=COLOURS[0], label="encoder")
        for (name, level), other in zip(references.items(), COLOURS[1:], strict=False):
            left.axhline(level, color=other, linestyle="--", linewidth=1.2, label=name)
        asked = "tokens" if at else "codes"
        left.set(xlabel="step" if at else "epoch", ylabel=f"loss on hidden {asked} (nats)")
        left.set_title("Tuning documents" if at else "Tuning subjects")
        left.locator_params(axis="x", integer=True)
        left.legend(frameon=False, fontsize=8.5)
        if by_frequency:
            names = [f"{int(group['codes']):,}" for group in by_frequency]
            for share, place, label in (("top10", 5, "in ten"), ("top1", 0, "first")):
                heights, colour = [group[share] for group in by_frequency], COLOURS[place]
                right.bar(range(len(names)), heights, color=colour, label=f"right code {label}")
            right.set_xticks(range(len(names)), names, rotation=45, fontsize=8)
            right.set(xlabel="codes, the commonest first (tenths of all events)", ylim=(0, 1))
            right.set(ylabel="share found", title="Hidden codes found")
            right.legend(frameon=False, fontsize=8.5)
        figure.savefig(path, dpi=120)
