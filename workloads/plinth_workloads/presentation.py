"""What a person sees of local runs: a progress bar while they train, a table when they are done."""

from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from plinth_api.parse import Job
from plinth_workloads.local import Home, JobResult

_LOG_EVERY_PERCENT = 10
_GIB = 1024**3


class JobProgress:
    """Step, loss, tokens/s and time left of one job; a line each tenth where the output is not a terminal."""

    def __init__(self, job: Job, console: Console) -> None:
        self._console = console
        self._name = job.metadata.name
        self._interactive = console.is_terminal
        self._total = 0
        self._next_line = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps  loss {task.fields[loss]}  {task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._interactive,
        )
        self._task = self._bar.add_task(f"{self._name}: starting", total=None, loss="-", speed="-")

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._interactive:
            self._console.print(f"{self._name}: starting", markup=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def follow(self, event: dict[str, Any]) -> None:
        """Show one progress event."""
        match event["event"]:
            case "preparing":
                self._describe("preparing data")
            case "memory":
                needed, room = event["needed"] / _GIB, event["room"] / _GIB
                self._console.print(f"{self._name}: needs about {needed:.2f} of {room:.2f} GiB a worker", markup=False)
            case "microBatchSize":
                self._console.print(f"{self._name}: passes of {event['rows']} rows are best here", markup=False)
            case "started":
                self._total = event["totalSteps"]
                self._describe("training", total=self._total, completed=event["step"])
                if event["step"]:
                    self._console.print(f"{self._name}: going on from step {event['step']}", markup=False)
            case "step" if self._total:
                self._step(event)
            case "evaluation":
                measured = ", ".join(f"{name} {value:.4g}" for name, value in event["metrics"].items())
                self._console.print(f"{self._name}: step {event['step']}: validation {measured}", markup=False)
            case "rollback":
                back = f"step {event['step']}: the loss is not a number; back to step {event['toStep']}"
                self._console.print(f"{self._name}: {back}, past the batches between", markup=False)
            case "evaluating":
                self._describe("registering the model")
            case "checkpointDamaged":
                self._console.print(
                    f"{self._name}: the checkpoint of step {event['step']} is damaged: {event['message']}", markup=False
                )
            case "stopping":
                self._describe("saving and stopping")

    def _describe(self, what: str, **changes: Any) -> None:
        self._bar.update(self._task, description=f"{self._name}: {what}", **changes)
        if not self._interactive:
            self._console.print(f"{self._name}: {what}", markup=False)

    def _step(self, event: dict[str, Any]) -> None:
        loss = "nan" if event["loss"] is None else f"{event['loss']:.3f}"
        self._bar.update(self._task, completed=event["step"], loss=loss, speed=f"{event['tokensPerSecond']:,.0f}")
        percent = 100 * event["step"] / max(1, self._total)
        if not self._interactive and percent >= self._next_line:
            self._next_line = percent - percent % _LOG_EVERY_PERCENT + _LOG_EVERY_PERCENT
            speed = f"{event['tokensPerSecond']:,.0f} tokens/s"
            self._console.print(f"{self._name}: step {event['step']}/{self._total}  loss {loss}  {speed}", markup=False)


def print_summary(results: list[JobResult], home: Home, console: Console) -> None:
    """A table of what the jobs came to, and where to look."""
    table = Table(title="Jobs", title_justify="left")
    for column in ("Job", "Outcome", "Steps", "Metrics", "Gate", "Model", "Time"):
        table.add_column(column, overflow="fold")
    for result in results:
        metrics = result.model.get("metrics", {})
        shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        table.add_row(
            result.name,
            result.reason or result.outcome,
            f"{result.step}/{result.total_steps}",
            shown or (f"loss {result.loss:.4g}" if result.loss is not None else ""),
            result.model.get("gate", ""),
            result.model.get("uri", ""),
            "done before" if result.already_done else f"{result.seconds:.0f} s",
        )
    console.print(table)
    for result in results:
        _print_details(result, home, console)


def _print_details(result: JobResult, home: Home, console: Console) -> None:
    if result.message:
        console.print(f"{result.name}: {result.reason}: {result.message}", style="red", markup=False)
    if result.already_done:
        console.print(f"{result.name}: is finished already; --again runs it once more", markup=False)
    if result.outcome == "stopped":
        console.print(
            f"{result.name}: stopped at step {result.step}; the same command goes on from there", markup=False
        )
    for finding in result.model.get("findings", ()):
        console.print(f"{result.name}: gate {finding}", markup=False)
    if result.checkpoint:
        console.print(f"{result.name}: checkpoint {result.checkpoint}", markup=False)
    if result.run_url:
        where = result.run_url if result.run_url.startswith("http") else f"http://127.0.0.1:5000/{result.run_url}"
        hint = "" if result.run_url.startswith("http") else "  (after: plinth ui)"
        console.print(f"{result.name}: MLflow {where}{hint}", markup=False)
    console.print(f"{result.name}: log {result.log}", markup=False)
