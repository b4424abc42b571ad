"""The training loop, the same for pretraining and every way to adapt: it knows neither Ray nor MLflow nor objectives.

A step reads the same rows and draws the same random numbers whatever the number of processes or the size of a pass,
and both follow from the step's number alone: a run that goes on from a checkpoint is the run that was never stopped.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from plinth_api.objective_rules import FACTS
from plinth_api.run import TrainRun
from plinth_workloads.data.loader import Batch, StepLoader
from plinth_workloads.errors import UserError
from plinth_workloads.train.checkpoint import Checkpoint, Checkpointer, SavedCheckpoint
from plinth_workloads.train.metrics import flops_per_token, memory_bytes, peak_flops
from plinth_workloads.train.optim import learning_rate_at, set_learning_rate
from plinth_workloads.train.parallel import Workers, autocast, gradients_synchronized
from plinth_workloads.train.pulse import Pulse, bytes_below
from plinth_workloads.train.rollback import LossNotFinite, Rollback, next_rollback

Metrics = Mapping[str, float]
_SEED_STRIDE = 1_000_003
"""Prime, so that seeds of different steps and shares of the rows do not meet."""


class Reporter(Protocol):
    """Whoever wants to know how the training goes; called in the first process only."""

    def on_step(self, step: int, metrics: Metrics) -> None:
        """A step's metrics are known."""
        ...

    def on_evaluation(self, step: int, metrics: Metrics) -> None:
        """The model was measured."""
        ...

    def on_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        """A checkpoint is complete."""
        ...

    def on_rollback(self, rollbacks: Sequence[Rollback]) -> None:
        """The run has gone back to a checkpoint; the last of `rollbacks` says why and where."""
        ...


@dataclass(slots=True)
class LoopState:
    """What the loop must know to go on, beside tensors and the loader's position."""

    step: int = 0
    tokens: int = 0
    evaluations: dict[str, dict[str, float]] = field(default_factory=dict)
    rollbacks: list[Rollback] = field(default_factory=list)


@dataclass(slots=True)
class _StepResult:
    """A step whose numbers may still be on the GPU."""

    step: int
    loss: Tensor
    grad_norm: Tensor
    tokens: int
    tokens_seen: int
    lr: float
    started: float


class TrainLoop:
    """Steps, evaluations and checkpoints until the last step, a request to stop, or an error."""

    def __init__(
        self,
        run: TrainRun,
        *,
        workers: Workers,
        model: nn.Module,
        loss: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        loader: StepLoader,
        checkpointer: Checkpointer,
        evaluate: Callable[[], Metrics] | None,
        num_steps: int,
        fingerprint: str,
        reporters: Sequence[Reporter] = (),
        stop_file: Path | None = None,
        pulse: Pulse | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            run: The run document.
            workers: This process among the others.
            model: The weights, on their device, sharded where the run shards.
            loss: Calls the model with a batch's inputs and returns the loss summed over the batch's targets.
            optimizers: Over the model's trainable weights.
            loader: This process's batches.
            checkpointer: Where state is saved.
            evaluate: Measures the model on the validation examples; None where there are none.
            num_steps: Optimizer steps in all.
            fingerprint: Of the data; a checkpoint goes on only with the data that it has seen.
            reporters: Who is told, in the first process.
            stop_file: Asks to save and stop, once it exists.
            pulse: Where the loop says that it moves, for whoever watches.
        """
        self._run, self._workers, self._model, self._loss = run, workers, model, loss
        self._optimizers, self._loader, self._checkpointer = optimizers, loader, checkpointer
        self._evaluate, self._fingerprint, self._stop_file = evaluate, fingerprint, stop_file
        self._reporters, self._pulse = reporters if workers.is_first else (), pulse or Pulse()
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.num_steps, self.state = num_steps, LoopState()
        asked, tenth = (run.evaluation.every_steps, run.checkpoint.every_steps), math.ceil(num_steps / 10)
        self._evaluate_every, self._save_every = (steps or tenth for steps in asked)
        self._resumed_from: Checkpoint | None = None
        self._rollbacks_here: list[Rollback] = []
        self._unread: _StepResult | None = None
        self._read_at = 0.0
        self._has_perplexity = "perplexity" in FACTS[run.objective].metrics
        self._peak_flops = peak_flops(workers.device)
        self._flops_per_token = flops_per_token(model, getattr(model, "config", None), run.training.sequence_length)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            UserError: CheckpointFailed where it is of another model or of other data.
        """
        state = self._checkpointer.load(checkpoint, self._model, self._optimizers)
        if state["fingerprint"] != self._fingerprint:
            raise UserError(
                "CheckpointFailed",
                f"{checkpoint.folder} was trained on other data than there is now; "
                "bring the data back, or start a new job",
            )
        self._loader.load_state_dict(state["loader"])
        rollbacks = [Rollback(*rollback) for rollback in state.get("rollbacks", [])]
        self.state = LoopState(state["step"], state["tokens"], state["evaluations"], rollbacks)
        self._resumed_from = checkpoint

    def train(self) -> Literal["finished", "stopped"]:
        """Train from the present step to the last.

        Raises:
            UserError: LossNaN or CheckpointFailed.
        """
        try:
            return self._train()
        except BaseException:
            # What is being saved is worth having, but the error that ends the run is the one to tell.
            with contextlib.suppress(Exception):
                self._report_saved(wait=True)
            raise

    def _train(self) -> Literal["finished", "stopped"]:
        while True:
            try:
                outcome = self._train_on()
            except LossNotFinite as found:
                if self._run.watchdog.on_nan == "Fail":
                    raise
                self._roll_back(found)
            else:
                self._pulse.rest()
                return outcome

    def _train_on(self) -> Literal["finished", "stopped"]:
        self._loss.train()
        stopping = False
        while self.state.step < self.num_steps and not stopping:
            stopping = self.train_step()
            step, last = self.state.step, self.state.step == self.num_steps
            if self._evaluate is not None and (last or step % self._evaluate_every == 0):
                self.record_evaluation(f"{step}")
            if last or stopping:
                self.save()
            elif step % self._save_every == 0:
                self._begin_save()
        self._read_step()
        return "finished" if self.state.step == self.num_steps else "stopped"

    def train_step(self) -> bool:
        """One optimizer step over the global batch.

        Returns:
            Whether somebody asked to stop.
        """
        started = time.perf_counter()
        step = self.state.step + 1
        self._pulse.mark("reading its batch", step)
        batches = self._loader.next_step()
        self._pulse.mark("agreeing with the others")
        num_targets, num_tokens, stop = self._agree(batches)
        lr = learning_rate_at(step, self.num_steps, self._run.training)
        set_learning_rate(self._optimizers, lr)
        torch.manual_seed(self._run.training.seed + _SEED_STRIDE * step + self._workers.data_rank)
        loss = self._backward(batches, num_targets)
        self._pulse.mark("updating the weights")
        grad_norm = self._clip()
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.state.step = step
        self.state.tokens += int(num_tokens)
        self._pulse.mark("waiting for the device")
        # On a GPU the step before is read only now, when the device has this one to work on.
        self._read_step()
        self._unread = _StepResult(step, loss, grad_norm, int(num_tokens), self.state.tokens, lr, started)
        if self._workers.device.type == "cpu":
            self._read_step()
        self._pulse.finish_step()
        return stop > 0

    def record_evaluation(self, name: str) -> Metrics:
        """Measure the model now and keep the result in the state under `name`."""
        assert self._evaluate is not None
        self._read_step()
        self._loss.eval()
        metrics = self._evaluate()
        self._loss.train()
        self.state.evaluations[name] = dict(metrics)
        for reporter in self._reporters:
            reporter.on_evaluation(self.state.step, metrics)
        return metrics

    def save(self) -> None:
        """Save a checkpoint of the present step, unless its loss is not a number; returns once it is complete."""
        self._begin_save()
        with self._pulse.during("saving a checkpoint", self._written):
            self._report_saved(wait=True)

    def _begin_save(self) -> None:
        self._read_step()
        state = {
            "tokens": self.state.tokens,
            "evaluations": self.state.evaluations,
            "rollbacks": [astuple(rollback) for rollback in self.state.rollbacks],
            "loader": self._loader.state_dict(),
            "fingerprint": self._fingerprint,
            "world_size": self._workers.world_size,
        }
        with self._pulse.during("saving a checkpoint", self._written):
            self._checkpointer.save(self.state.step, self._model, self._optimizers, state)
        self._rollbacks_here = []

    def _written(self) -> tuple[int, int, int]:
        return *bytes_below(self._checkpointer.folder), self._checkpointer.moved_bytes

    def newest_checkpoint(self) -> Checkpoint | None:
        """Where the run would go on."""
        return self._checkpointer.newest()

    def _report_saved(self, *, wait: bool) -> None:
        for checkpoint in self._checkpointer.saved(wait=wait):
            for reporter in self._reporters:
                reporter.on_checkpoint(checkpoint)

    def _agree(self, batches: Sequence[Batch]) -> list[float]:
        """Targets and tokens of the global batch, and how many processes were asked to stop.

        Raises:
            UserError: CheckpointFailed in all processes, where a save has failed since the last step.
        """
        targets = sum(batch.num_targets for batch in batches)
        tokens = sum(batch.num_tokens for batch in batches)
        stop = self._stop_file is not None and self._stop_file.exists()
        *counted, stops, failed = self._workers.sum(targets, tokens, stop, self._checkpointer.has_failed)
        self._report_saved(wait=failed > 0)
        return [*(count / self._workers.tensor for count in counted), stops]

    def _backward(self, batches: Sequence[Batch], num_targets: float) -> Tensor:
        """Gradients of the mean loss over the targets of the global batch; returns that loss."""
        total = torch.zeros((), device=self._workers.device)
        # Gradients are averaged over the shares of the rows, so each scales its sum up again.
        scale = self._workers.data_size / max(1.0, num_targets)
        for index, batch in enumerate(batches):
            self._pulse.mark("computing the forward pass")
            moved = batch.to(self._workers.device)
            with gradients_synchronized(self._loss, last=index == len(batches) - 1):
                with autocast(self._run, self._workers):
                    loss = self._loss(**moved.inputs)
                self._pulse.mark("computing the backward pass")
                (loss * scale).backward()
            total += loss.detach()
        return self._workers.sum_tensor(total) / (self._workers.tensor * max(1.0, num_targets))

    def _clip(self) -> Tensor:
        """Clip the gradients' norm; returns the norm before."""
        limit = self._run.training.max_grad_norm or math.inf
        norm: Any = nn.utils.clip_grad_norm_(self._trainable, limit)
        whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return whole

    def _read_step(self) -> None:
        """Report the last step that has not been read.

        Raises:
            LossNotFinite: In every process, as they have the same numbers.
        """
        result, self._unread = self._unread, None
        if result is None:
            return
        loss, grad_norm = float(result.loss), float(result.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise LossNotFinite(result.step, self._nan_message(result.step, loss, grad_norm))
        now = time.perf_counter()
        seconds, self._read_at = now - max(result.started, self._read_at), now
        tokens_per_second = result.tokens / seconds
        metrics = {
            "train/loss": loss,
            "train/lr": result.lr,
            "train/grad_norm": grad_norm,
            "train/tokens": float(result.tokens_seen),
            "train/tokens_per_sec": tokens_per_second,
            "train/step_seconds": seconds,
            "train/memory_bytes": float(memory_bytes(self._workers.device)),
        }
        if self._has_perplexity:
            metrics["train/perplexity"] = math.exp(min(loss, 50.0))
        if self._peak_flops is not None:
            available = self._peak_flops * self._workers.world_size
            metrics["train/mfu"] = tokens_per_second * self._flops_per_token / available
        for reporter in self._reporters:
            reporter.on_step(result.step, metrics)

    def _roll_back(self, found: LossNotFinite) -> None:
        """Go back to the newest checkpoint, and past the batches up to a step whose loss is not a number.

        Raises:
            UserError: LossNaN, where that is not possible or has not helped.
        """
        self._unread = None
        rollbacks = self.state.rollbacks
        checkpoint = self._newest_for_all()
        rollback = next_rollback(found, checkpoint, self._rollbacks_here)
        assert checkpoint is not None
        self._pulse.mark("going back to a checkpoint")
        self.resume(checkpoint)
        self._rollbacks_here.append(rollback)
        self._loader.skip_steps(sum(earlier.skipped_steps for earlier in self._rollbacks_here))
        self.state.rollbacks = [*rollbacks, rollback]
        for reporter in self._reporters:
            reporter.on_rollback(self.state.rollbacks)

    def _newest_for_all(self) -> Checkpoint | None:
        """The checkpoint that the first process finds newest, which a shared folder may show to others later."""
        newest = self._checkpointer.newest() if self._workers.is_first else None
        step = int(self._workers.sum(newest.step if newest else 0)[0])
        return Checkpoint(step, self._checkpointer.folder / f"step-{step:08d}") if step else self._resumed_from

    def _nan_message(self, step: int, loss: float, grad_norm: float) -> str:
        newest = self._checkpointer.newest()
        kept = f"the last good checkpoint is of step {newest.step}" if newest else "there is no checkpoint yet"
        return (
            f"step {step}: the loss is {loss} and the gradient norm {grad_norm}; lower spec.training.learningRate, "
            f"lengthen schedule.warmupSteps or look at the data; {kept}"
        )
