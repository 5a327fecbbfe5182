"""`trm-ray selftest`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trm_ray.cli.common import FAILED, app, check_place, complain, reported, write_text
from trm_ray.reporting.terminal import say, show
from trm_ray.storage import is_remote


@app.command()
@reported
def selftest(
    only: Annotated[str | None, typer.Option(help="Comma-separated faults, such as `driver,cut`.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Ray workers to hit too; 0 leaves Ray out.")] = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Where the runs lie: storage that all nodes see. By default a temporary one.")
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the outcomes as JSON too.")] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Check and measure this machine's GPU instead.")] = False,
    markdown: Annotated[Path | None, typer.Option(help="With --gpu: write the table for docs/scaling.md.")] = None,
) -> None:
    """Disturb tiny runs on purpose, and show that each arrives at the bytes of one that was left alone.

    Processes are killed, checkpoints damaged, storage and data taken away; nothing outside the runs' folder is touched.
    With --gpu nothing is disturbed: losses are held against the CPU's, and speed and memory are measured, in about ten
    minutes.

    Example: `trm-ray selftest --workers 2 --save faults.json`
    """
    check_place(save, "--save")
    check_place(markdown, "--markdown")
    if gpu:
        return _check_gpu(only.split(",") if only else [], save, markdown)
    if markdown is not None:
        raise ValueError(f"--markdown {markdown} goes with --gpu; add it, or use --save")
    from trm_ray.measure.selftest import chosen_faults, fault_table, faults_json, make_faults
    from trm_ray.measure.selftest.ground import Ground

    if folder is not None and (is_remote(folder) or not folder.is_dir()):
        raise ValueError(f"--folder {folder} is no folder; make it first")
    names, console, outcomes = chosen_faults(only.split(",") if only else [], workers), Console(), []
    with tempfile.TemporaryDirectory(prefix="trm-ray-selftest-", dir=folder) as place:
        for outcome in make_faults(names, Ground(Path(place).resolve(), workers)):
            outcomes.append(outcome)
            say(console, f"{'passed' if outcome.passed else 'FAILED'}  {outcome.fault}")
    show(console, fault_table(outcomes))
    write_text(console, save, faults_json(outcomes))
    failed = [outcome for outcome in outcomes if not outcome.passed]
    for outcome in failed:
        complain(f"{outcome.fault}: {outcome.problem or 'the run differs from the undisturbed one'}")
    if failed:
        raise typer.Exit(FAILED)


def _check_gpu(only: list[str], save: Path | None, markdown: Path | None) -> None:
    from trm_ray.measure.selftest import gpu
    from trm_ray.measure.step_cost import any_device

    console, device, findings = Console(), any_device(), list[gpu.Finding]()
    if device.type != "cuda":
        raise ValueError("--gpu needs a GPU, and torch finds none on this machine; run it where there is one")
    machine = gpu.machine_line(device)
    say(console, machine)
    with tempfile.TemporaryDirectory(prefix="trm-ray-selftest-") as place:
        for finding in gpu.run_checks(gpu.Bench(device), Path(place).resolve(), only):
            findings.append(finding)
            verdict = {True: "passed", False: "FAILED", None: "measured"}[finding.passed]
            say(console, f"{verdict:8}  {finding.check}: {finding.case}: {finding.told}")
    write_text(console, save, gpu.gpu_json(findings, machine))
    write_text(console, markdown, gpu.gpu_markdown(findings, machine))
    failed = [finding for finding in findings if finding.passed is False]
    for finding in failed:
        complain(f"{finding.check}: {finding.case}: {finding.told}")
    if failed:
        raise typer.Exit(FAILED)
