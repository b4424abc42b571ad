"""How much memory one worker needs, from the shape of a model and the run document, before any of it is allocated.

Enters: what `shape_of` counts in a model, and the run document. Leaves: bytes by what they are for, and the sentence of
a run that cannot fit. Weights, gradients and optimizer states are exact. Activations are of the kind of model and
kernel: the count here is of what transformers' blocks keep for the backward pass, and within a third of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from plinth_api.run import TrainRun
from plinth_workloads.models.attention import ATTENTION_DROPOUTS
from plinth_workloads.models.four_bits import BYTES_PER_WEIGHT, is_four_bit, num_elements
from plinth_workloads.objectives.chunked_loss import CHUNK_LOGITS
from plinth_workloads.train.optim import BYTES_PER_STATE, LEAST_ELEMENTS, hidden_matrices
from plinth_workloads.train.parallel import transformer_blocks

GIB = 1024**3
SURE_OF_ACTIVATIONS = {"causalLM": 2 / 3, "maskedLM": 2 / 3}
"""The part of the estimated activations that a refusal counts on, by objective; the rest is the estimate's own
uncertainty. None of it where a model does not compute all positions in all blocks: windows, stages, decoders."""

_FP32, _BF16 = 4, 2
_NORM_COPIES = 2
"""transformers' norms keep what comes in and what is normalized, each in float32."""
_UNFUSED = frozenset({"NewGELUActivation", "FastGELUActivation", "QuickGELUActivation"})
_UNFUSED_COPIES = 3
"""Activation functions made of several operations, and what these keep beside what enters and leaves."""
_SCORE_COPIES = 3
"""Scores of attention, as probabilities, as what dropout leaves of them, and its mask."""
_TEXTS_OF_A_ROW = {"contrastiveText": 2, "preference": 2, "embedding": 3}
"""By objective, where a row has more than one text, each of at most `sequenceLength` tokens."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a model decides how much memory its training needs.

    Attributes:
        parameters: Elements of all weights.
        trainable: Elements of the weights that move.
        matrices: Elements of the trainable weights that an optimizer for matrices would take.
        small: Elements of trainable weights that are too small for states of 8 bits.
        four_bit: Elements of weights that are stored in 4 bits.
        multiplied: Elements of other weights in matrix products of the blocks, which autocast copies.
        num_blocks: Repeated blocks.
        block: Elements of the largest block.
        kept: Elements for each token that all matrix products let a backward pass keep.
        products: Elements for each token that all matrix products return.
        norms: Sum of the widths of all norms.
        hidden: Width of what goes from block to block.
        vocabulary: Rows of the output embeddings; 0 where the model predicts no tokens.
        head_moves: Whether the output embeddings are trained.
        heads: Attention heads of all blocks whose tokens see whole rows.
        unfused: Elements for each token that enter activation functions of several operations.
        eager: Whether attention keeps its scores on any device.
        drops_scores: Whether scores of attention are dropped out, with which no kernel of a CPU does without them.
    """

    parameters: int
    trainable: int
    matrices: int
    multiplied: int
    num_blocks: int
    block: int
    kept: int
    products: int
    norms: int
    hidden: int
    vocabulary: int
    head_moves: bool
    heads: int
    unfused: int = 0
    eager: bool = False
    drops_scores: bool = False
    small: int = 0
    four_bit: int = 0

    @property
    def stored(self) -> int:
        """Bytes of all weights."""
        return _FP32 * (self.parameters - self.four_bit) + round(BYTES_PER_WEIGHT * self.four_bit)


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of one worker.

    Attributes:
        weights: Its part of the weights, in float32 but for those in 4 bits.
        gradients: Of its part of the weights that move.
        optimizer: States of the optimizers.
        working: Weights in another form while they are used: gathered from all shards, or cast.
        activations: What the forward pass of `rows` rows keeps for the backward pass.
        loss: Logits of one chunk of tokens, and the head's gradient.
        saving: Copies in the host's memory that a checkpoint is written from.
    """

    weights: int
    gradients: int
    optimizer: int
    working: int
    activations: int
    loss: int
    saving: int

    @property
    def state(self) -> int:
        """What no smaller pass makes less: weights, gradients, optimizer states."""
        return self.weights + self.gradients + self.optimizer

    @property
    def of_a_pass(self) -> int:
        """What is there only during a pass."""
        return self.working + self.activations + self.loss

    def needed(self, *, on_host: bool) -> int:
        """All that is expected in the memory in which the run trains: the host's or a GPU's."""
        return self.state + self.of_a_pass + (self.saving if on_host else 0)

    def certain(self, objective: str, *, on_host: bool) -> int:
        """What a run of an objective cannot do without."""
        sure = self.state + round(SURE_OF_ACTIVATIONS.get(objective, 0) * self.activations)
        return sure + (self.saving if on_host else 0)

    def described(self) -> str:
        """The parts in GiB: weights 0.50, gradients 0.50, ..."""
        parts = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts if size)


def shape_of(model: Any) -> ModelShape:
    """Count a model's weights and what its modules keep; the model may be anywhere, whole."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    head_weight = getattr(head, "weight", None)
    blocks = transformer_blocks(model)
    kept = products = norms = multiplied = unfused = widest = 0
    for module in model.modules():
        unfused += type(module).__name__ in _UNFUSED
        weight = getattr(module, "weight", None)
        if not isinstance(weight, nn.Parameter) or isinstance(module, nn.Embedding) or weight is head_weight:
            continue
        if weight.ndim == 1:
            norms += weight.numel()
        elif weight.ndim == 2:
            # What is in 4 bits has another shape than it stands for; transformers' Conv1D names no features.
            is_linear = isinstance(module, nn.Linear)
            entering, leaving = (module.in_features, module.out_features) if is_linear else weight.shape
            kept += leaving + (entering if weight.requires_grad else 0)
            products += leaving
            widest = max(widest, leaving)
            multiplied += 0 if is_four_bit(weight) else weight.numel()
    parameters = list(model.parameters())
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    config = getattr(model.config, "get_text_config", lambda: model.config)()
    # A list has the heads of each stage, whose attention is in windows.
    heads = getattr(config, "num_attention_heads", 0)
    return ModelShape(
        parameters=_elements(parameters),
        trainable=_elements(trainable),
        small=_elements(parameter for parameter in trainable if parameter.numel() < LEAST_ELEMENTS),
        four_bit=_elements(parameter for parameter in parameters if is_four_bit(parameter)),
        matrices=_elements(hidden_matrices(model)),
        multiplied=multiplied,
        num_blocks=len(blocks),
        block=max((_elements(block.parameters()) for block in blocks), default=0),
        kept=kept,
        products=products,
        norms=norms,
        hidden=getattr(config, "hidden_size", 0) or 0,
        vocabulary=0 if head_weight is None else int(head_weight.shape[0]),
        head_moves=head_weight is not None and head_weight.requires_grad,
        heads=len(blocks) * heads if isinstance(heads, int) else 0,
        unfused=unfused * widest,
        eager=getattr(config, "_attn_implementation", None) == "eager",
        drops_scores=any(getattr(config, name, 0) for name in ATTENTION_DROPOUTS),
    )


def _elements(parameters: Any) -> int:
    return sum(num_elements(parameter) for parameter in parameters)


def tokens_of_a_row(run: TrainRun, config: Any) -> int:
    """Positions that a model computes for one row: its tokens, those of all texts of a row, or its patches."""
    if run.objective in _TEXTS_OF_A_ROW:
        return _TEXTS_OF_A_ROW[run.objective] * run.training.sequence_length
    if run.objective == "maskedImage":
        image, patch = (getattr(config, name, 0) for name in ("image_size", "patch_size"))
        if isinstance(image, int) and isinstance(patch, int) and patch:
            return (image // patch) ** 2 + 1
    return run.training.sequence_length


def estimate(shape: ModelShape, run: TrainRun, *, rows: int, tokens: int, device: str) -> MemoryEstimate:
    """The memory of one worker.

    Args:
        shape: Of the model, with what its method adds.
        run: Optimizer, precision, shards and checkpointing.
        rows: Rows of a pass.
        tokens: Positions of a row.
        device: cpu or cuda.
    """
    parts = run.workers.shard * run.workers.tensor
    states = _states(shape, run.training.optimizer)
    return MemoryEstimate(
        weights=_part(shape.stored, parts),
        gradients=_part(_FP32 * shape.trainable, parts),
        optimizer=_part(states, parts),
        working=_working(shape, run),
        activations=rows * tokens * (_kept_for_a_token(shape, run) + _scores_of_a_token(shape, run, tokens, device)),
        loss=_of_the_loss(shape, rows * tokens, run, device),
        saving=_part(_FP32 * shape.trainable + states, parts),
    )


def _states(shape: ModelShape, optimizer: str) -> int:
    """Bytes of an optimizer's two states, of which muon keeps one for a matrix."""
    if optimizer == "adamw8bit":
        return round(2 * BYTES_PER_STATE * (shape.trainable - shape.small)) + 2 * _FP32 * shape.small
    return _FP32 * (2 * shape.trainable - (shape.matrices if optimizer == "muon" else 0))


def _part(size: int, parts: int) -> int:
    return -(-size // parts)


def _width(run: TrainRun) -> int:
    """Bytes of an element in products."""
    return _BF16 if run.training.precision == "bf16" else _FP32


def _working(shape: ModelShape, run: TrainRun) -> int:
    if run.workers.splits_weights:
        # Two blocks, as the next one is gathered while one computes, and all that lies outside of blocks; the gradient
        # of one block before it is shared out.
        outside = shape.parameters - shape.num_blocks * shape.block
        whole = _width(run) * (2 * shape.block + max(0, outside)) + _FP32 * shape.block
        return _part(whole, run.workers.tensor)
    return _BF16 * shape.multiplied if run.training.precision == "bf16" else 0


def _kept_for_a_token(shape: ModelShape, run: TrainRun) -> int:
    """Bytes that all blocks keep for one token until the backward pass."""
    width, tensor = _width(run), run.workers.tensor
    # Each of the workers that hold a layer together has what enters it, twice a block, and a part of what it computes.
    entering = 2 * shape.num_blocks * shape.hidden if tensor > 1 else 0
    kept, products = entering + _part(shape.kept, tensor), _part(shape.products, tensor)
    # Autocast leaves what goes from block to block in float32; sharded models cast it.
    stream = shape.hidden * (width if run.workers.splits_weights else _FP32)
    unfused = _part(_UNFUSED_COPIES * shape.unfused, tensor)
    everything = (kept + unfused) * width + shape.norms * _NORM_COPIES * _FP32
    mode = run.training.activation_checkpointing
    if mode == "none" or not shape.num_blocks:
        return everything
    again = everything // shape.num_blocks
    if mode == "full":
        return min(everything, shape.num_blocks * stream + again)
    attention = shape.num_blocks * _part(shape.hidden, tensor) * width
    return min(everything, shape.num_blocks * stream + products * width + attention + again)


def _scores_of_a_token(shape: ModelShape, run: TrainRun, tokens: int, device: str) -> int:
    """Bytes of attention scores for one token, where attention keeps them at all."""
    if not (shape.eager or (shape.drops_scores and device == "cpu")):
        return 0
    blocks = 1 if run.training.activation_checkpointing == "none" else max(1, shape.num_blocks)
    return _SCORE_COPIES * tokens * _part(shape.heads, run.workers.tensor) // blocks * _width(run)


def _of_the_loss(shape: ModelShape, tokens: int, run: TrainRun, device: str) -> int:
    if not shape.vocabulary:
        return 0
    vocabulary = _part(shape.vocabulary, run.workers.tensor)
    at_once = min(tokens * vocabulary, CHUNK_LOGITS.get(device, CHUNK_LOGITS["cpu"]))
    # liger-kernel, where it computes the loss, is held to as many logits, and has them once.
    cast = _BF16 if run.training.precision == "bf16" else 0
    gradients = shape.hidden * (tokens + (vocabulary if shape.head_moves else 0))
    return at_once * (2 * _FP32 + cast) + _FP32 * gradients


@dataclass(frozen=True, slots=True)
class Room:
    """The memory that a worker may use.

    Attributes:
        size: Bytes.
        what: What it is: the GPU's memory, the container's limit.
        raised_by: The field that makes it larger; None where none does.
    """

    size: int
    what: str
    raised_by: str | None


def refusal(found: MemoryEstimate, run: TrainRun, room: Room, *, rows: int, on_host: bool) -> str | None:
    """Why a run cannot fit and what to change, in one sentence; None where it may fit."""
    certain = found.certain(run.objective, on_host=on_host)
    if certain <= room.size:
        return None
    needed = found.needed(on_host=on_host)
    changes = _state_changes(run) if found.state > room.size else [*_pass_changes(run, rows), *_state_changes(run)]
    if room.raised_by:
        changes.append(f"raise {room.raised_by}")
    return (
        f"a worker needs about {needed / GIB:.2f} GiB, at least {certain / GIB:.2f}, but has {room.size / GIB:.2f} of "
        f"{room.what}: in GiB with {rows} {_plural(rows, 'row')} of {run.training.sequence_length} tokens a pass, "
        f"{found.described()}; {_listed(changes)}"
    )


def _pass_changes(run: TrainRun, rows: int) -> list[str]:
    training = run.training
    changes = [f"lower spec.training.microBatchSize (now {rows}) or set it to auto"] if rows > 1 else []
    if training.activation_checkpointing != "full":
        mode = training.activation_checkpointing
        changes.append(f"set spec.training.activationCheckpointing to full (now {mode})")
    return [*changes, f"lower spec.training.sequenceLength (now {training.sequence_length})"]


def _state_changes(run: TrainRun) -> list[str]:
    changes = [f"raise spec.compute.parallelism.shard (now {run.workers.shard})"]
    if run.kind == "FineTuneJob" and run.method.full is not None:
        changes.append("use method lora")
    elif run.kind == "PretrainJob":
        changes.append("take a smaller model")
    return changes


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _listed(changes: list[str]) -> str:
    return changes[0] if len(changes) == 1 else f"{', '.join(changes[:-1])}, or {changes[-1]}"


def told(found: MemoryEstimate, room: Room, *, rows: int, on_host: bool) -> Mapping[str, Any]:
    """What the progress file says of an estimate, in bytes."""
    parts = {field.name: getattr(found, field.name) for field in fields(found)}
    return {"needed": found.needed(on_host=on_host), "room": room.size, "of": room.what, "rows": rows, **parts}
