"""Models that read: a folder enters, a module from token ids to embeddings or to what labels get leaves.

Shapes: B texts, T tokens, D numbers of an embedding, L labels.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plinth_api.run import ServingTask
from plinth_workloads.errors import UserError
from plinth_workloads.models.load import load_model
from plinth_workloads.models.packed_linear import pack_linear_layers
from plinth_workloads.models.pooling import pooled
from plinth_workloads.models.sentence_files import SentenceSettings, read_sentence_settings
from plinth_workloads.models.tokenizers import load_tokenizer
from plinth_workloads.models.virtual_tokens import ADAPTER_CONFIG
from plinth_workloads.serving.encoder import Labels
from plinth_workloads.serving.token_bounds import positions_of

_CLASSES = {"embed": "AutoModel", "classify": "AutoModelForSequenceClassification"}


class TextModel(nn.Module):
    """A model with its tokenizer, in evaluation mode; called with input_ids_BT and attention_mask_BT.

    Attributes:
        task: What it does.
        width: How many numbers it gives a text.
        labels: What they stand for; None for embeddings.
        context_length: Most tokens of a text, its marks included.
        vocab_size: Token ids are below it.
        pad_id: What fills a row that is not full.
        probe: Token ids of the shortest text.
    """

    task: ServingTask
    width: int
    labels: Labels | None = None

    def __init__(self, model: Any, tokenizer: Any, settings: SentenceSettings) -> None:
        super().__init__()
        self.model = model.eval()
        self._tokenizer, self._settings = tokenizer, settings
        # One text at a time: a fast tokenizer used by two threads may raise "Already borrowed".
        # https://github.com/huggingface/tokenizers/issues/537
        self._lock = threading.Lock()
        config = model.config.get_text_config()
        if config.pad_token_id is None:
            # Heads behind the last token find it by what is padding.
            model.config.pad_token_id = config.pad_token_id = tokenizer.pad_token_id
        self.pad_id: int = config.pad_token_id
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.context_length = _context_length_of(model, tokenizer, settings)
        self.probe: Sequence[int] = self.encode(["a"])[0] or [self.pad_id]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self.model.device
        return device

    @torch.inference_mode()
    def some_output(self) -> Tensor:
        """What it gives for the shortest text."""
        input_ids_BT = torch.tensor([self.probe], device=self.device)
        output: Tensor = self(input_ids_BT, torch.ones_like(input_ids_BT))
        return output

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, with the model's prompt before each; safe to call from any thread."""
        if not texts:
            return []  # which transformers' tokenizers do not take
        read = [self._settings.prompt + text for text in texts]
        if self._settings.lower_case:
            read = [text.lower() for text in read]
        with self._lock:
            ids: list[list[int]] = self._tokenizer(read, truncation=False, verbose=False)["input_ids"]
        return ids


class EmbeddingModel(TextModel):
    """Texts to vectors of length one, as `SentenceSettings` say."""

    task: ServingTask = "embed"

    def __init__(self, model: Any, tokenizer: Any, settings: SentenceSettings) -> None:
        super().__init__(model, tokenizer, settings)
        self.width = model.config.get_text_config().hidden_size * len(settings.poolings)

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """The embeddings, [B, D]."""
        states_BTD = self.model(input_ids=input_ids_BT, attention_mask=attention_mask_BT).last_hidden_state
        return pooled(states_BTD, attention_mask_BT, self._settings.poolings)


class LabelModel(TextModel):
    """Texts to what their labels get: probabilities, or values where the model was made for those."""

    task: ServingTask = "classify"
    labels: Labels

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer, SentenceSettings())
        names = tuple(str(model.config.id2label[number]) for number in range(model.config.num_labels))
        self.width, self.labels = len(names), Labels(names, _kind_of(model.config))

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        """What each label gets, [B, L]."""
        logits_BL = self.model(input_ids=input_ids_BT, attention_mask=attention_mask_BT).logits.float()
        if self.labels.kind == "value":
            return logits_BL
        return logits_BL.softmax(-1) if self.labels.kind == "one" else logits_BL.sigmoid()


def load_text_model(
    folder: Path, uri: str, task: ServingTask, *, device: str, tracking_uri: str, cache_dir: Path
) -> TextModel:
    """The model in a folder, as what it embeds or classifies with.

    Args:
        folder: Of the model or adapter.
        uri: What the user calls it; for messages.
        task: embed or classify.
        device: Where it computes.
        tracking_uri: Where an adapter's base is found.
        cache_dir: Where it is kept.

    Raises:
        UserError: ModelLoadFailed, ModelNotFound or TrackingUnavailable.
    """
    settings = read_sentence_settings(folder, uri)
    tokenizer = load_tokenizer(folder, uri)
    model: Any = load_model(
        folder, uri, auto_class=_CLASSES[task], tracking_uri=tracking_uri, cache_dir=cache_dir, device=device
    )
    if not (folder / ADAPTER_CONFIG).exists():
        # What an adapter's base lacks, the adapter has; a pooler is no part of an embedding.
        missing = [name for name in model.new_weights if task == "classify" or not name.startswith("pooler.")]
        if missing:
            raise UserError("ModelLoadFailed", f"{uri} has no weights for {min(missing)}, which would be random")
    if task == "classify" and _kind_of(model.config) == "value" and model.config.num_labels > 1:
        raise UserError("ModelLoadFailed", f"{uri} gives a text {model.config.num_labels} values; one is served")
    made = EmbeddingModel(model, tokenizer, settings) if task == "embed" else LabelModel(model, tokenizer)
    pack_linear_layers(made, made.some_output)
    return made


def _kind_of(config: Any) -> Literal["one", "several", "value"]:
    """As transformers' pipelines read it: a single number that is no regression is the probability of its label."""
    if config.problem_type == "regression":
        return "value"
    return "several" if config.problem_type == "multi_label_classification" or config.num_labels == 1 else "one"


def _context_length_of(model: Any, tokenizer: Any, settings: SentenceSettings) -> int:
    positions = positions_of(model)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            # RoBERTa and its kin count positions from behind that of padding.
            positions -= module.padding_idx + 1
    return min(positions, tokenizer.model_max_length, settings.max_tokens or positions)
