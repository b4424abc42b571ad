"""Random models that read and fit in a test, their byte-level tokenizer, engines of them, and sums done by hand."""

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, BertModel

from plinth_workloads.models.sentence_files import SentenceSettings
from plinth_workloads.serving.encoder import FloatArray
from plinth_workloads.serving.encoder_engine import EncoderEngine
from plinth_workloads.serving.text_models import EmbeddingModel, LabelModel, TextModel
from unit.plinth_workloads.serving.tiny_model import make_tokenizer

CONTEXT_LENGTH = 64
SIZE = 16


def make_config(**config: Any) -> BertConfig:
    return BertConfig(
        vocab_size=257,
        hidden_size=SIZE,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        initializer_range=0.4,
        **config,
    )


def make_bert() -> Any:
    """Weights large enough that a vector depends on the whole text."""
    torch.manual_seed(0)
    return BertModel(make_config()).eval()


def make_classifier(**config: Any) -> Any:
    torch.manual_seed(0)
    return BertForSequenceClassification(make_config(**config)).eval()


def make_text_model(**settings: Any) -> EmbeddingModel:
    return EmbeddingModel(make_bert(), make_tokenizer(), SentenceSettings(**settings))


def make_label_model(**config: Any) -> LabelModel:
    return LabelModel(make_classifier(**config), make_tokenizer())


class GatedModel(EmbeddingModel):
    """Computes a pass only while `gate` is open; says which lengths each had."""

    def __init__(self) -> None:
        super().__init__(make_bert(), make_tokenizer(), SentenceSettings())
        self.gate, self.has_begun = threading.Event(), threading.Event()
        self.passes: list[list[int]] = []

    def forward(self, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
        self.passes.append(sorted(attention_mask_BT.sum(1).tolist()))
        self.has_begun.set()
        assert self.gate.wait(timeout=30)
        return super().forward(input_ids_BT, attention_mask_BT)


def make_engine(model: TextModel | None = None, **options: Any) -> EncoderEngine:
    return EncoderEngine(model or make_text_model(), **options)


@asynccontextmanager
async def running_encoder(model: TextModel | None = None, **options: Any) -> AsyncIterator[EncoderEngine]:
    engine = make_engine(model, **options)
    await engine.start()
    try:
        yield engine
    finally:
        if isinstance(model, GatedModel):
            model.gate.set()
        await engine.stop()


@torch.no_grad()
def by_hand(ids: Sequence[int]) -> FloatArray:
    """The mean over a text's tokens, divided by its length, of the text alone and without a mask."""
    mean = make_bert()(input_ids=torch.tensor([list(ids)])).last_hidden_state[0].mean(0).numpy()
    vector: FloatArray = mean / np.sqrt((mean**2).sum())
    return vector
