"""`trm-ray replay`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import app, check_place, reported, write_text
from trm_ray.reporting.terminal import say, show

if TYPE_CHECKING:
    from trm_ray.config import AshaConfig


@app.command()
@reported
def replay(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="SWEEP|RUN...", help="Runs that were trained to their end."),
    ],
    grace: Annotated[
        str | None,
        typer.Option(metavar="N,N,…", help="Values of `asha.grace_period`; by default up to three."),
    ] = None,
    reduction: Annotated[str, typer.Option(metavar="X,X,…", help="Values of `asha.reduction_factor`.")] = "2,3,4",
    metric: Annotated[
        str | None, typer.Option(metavar="TAG,TAG,…", help="Values of `asha.metric`; by default all that are logged.")
    ] = None,
    unit: Annotated[str, typer.Option(metavar="UNIT,…", help="Values of `asha.unit`: trial, group.")] = "trial,group",
    keep: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Scenarios never stopped; by default as in the sweep.")
    ] = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="KEY", help="Runs compete only with those of equal value; as in the sweep.")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Trials that train at a time.")] = 2,
    orders: Annotated[int, typer.Option(min=0, help="Random orders to start trials in, besides a sweep's own.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random orders.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Picture to write.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write all numbers as JSON too.")] = None,
) -> None:
    """Replay early stopping on finished runs: what each setting saves, whether the best survives, which to take.

    Example: `trm-ray replay runs/full --grace 100,200,400 --reduction 2,3,4 --save replay.png`
    """
    from rich.progress import track

    from trm_ray.programs.replay import replay as replay_runs
    from trm_ray.reporting.numbers.replay import omens_table, replay_json, replay_lines, settings_table

    for path, option in ((save, "--save"), (json, "--json")):
        check_place(path, option)
    if save is not None:
        from trm_ray.reporting.pictures.style import format_of

        format_of(save)
    console = Console()

    def shown(settings: Sequence[AshaConfig]) -> Iterable[AshaConfig]:
        label = f"replaying {len(settings)} settings in {orders + 1} orders"
        return track(settings, label, console=console, transient=True, disable=not console.is_terminal)

    found = replay_runs(
        runs,
        grace=None if grace is None else [_whole("--grace", word) for word in _words(grace)],
        reduction=[_number("--reduction", word) for word in _words(reduction)],
        metrics=None if metric is None else _words(metric),
        units=_words(unit),
        keep=None if keep is None else _words(keep),
        group_by=group_by,
        slots=slots,
        orders=orders,
        seed=seed,
        shown=shown,
    )
    show(console, omens_table(found))
    say(console, "")
    show(console, settings_table(found))
    say(console, "")
    for line in replay_lines(found):
        say(console, line)
    if save is not None:
        from trm_ray.reporting.pictures.replay import save_replay

        say(console, f"Wrote {save_replay(found, save)}")
    write_text(console, json, replay_json(found))


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _whole(option: str, word: str) -> int:
    if not word.isdecimal():
        raise ValueError(f"{option}={word} must be whole numbers of at least 1, such as {option} 100,200,400")
    return int(word)


def _number(option: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{option}={word} must be numbers above 1, such as {option} 2,3,4") from None
