"""Tokenizers: trained on the job's own text, or loaded from a folder, with the chat template that goes with them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from plinth_workloads.errors import UserError
from plinth_workloads.models.model_files import unusable_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|endoftext|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Each turn opens with its role and ends with the token that ends every text, so a model stops after its answer."""


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, folder: Path, special_tokens: Mapping[str, str] | None = None
) -> None:
    """Train a byte-level BPE tokenizer and save it as a Hugging Face folder.

    Args:
        texts: What to train on.
        vocab_size: Number of tokens, special tokens and the 256 bytes included.
        folder: Where `tokenizer.json` and its configuration go.
        special_tokens: Further ones that the objective needs: `mask_token`, or a name of its own.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    further = dict(special_tokens or {})
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, *ROLES.values(), *further.values()],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    named = {name: further.pop(name) for name in PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES if name in further}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        additional_special_tokens=[*ROLES.values(), *further.values()],
        **named,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def load_tokenizer(folder: Path, uri: str) -> "PreTrainedTokenizerBase":
    """The tokenizer in a Hugging Face folder.

    Args:
        folder: Where it lies.
        uri: What the user calls it; for messages.

    Raises:
        UserError: ModelLoadFailed where there is none, or none that can be used.
    """
    from transformers import AutoTokenizer

    with unusable_files(f"{uri} has no tokenizer that can be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not tokenizer.is_fast:
        raise UserError("ModelLoadFailed", f"{uri} has only a slow tokenizer; convert it to tokenizer.json")
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is not None:
        # The tokenizers of BERT and its kin end a text with this one.
        tokenizer.eos_token = tokenizer.sep_token
    if tokenizer.eos_token_id is None:
        raise UserError("ModelLoadFailed", f"{uri} has a tokenizer without an end-of-text token; set eos_token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def put_marks(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Let a tokenizer that has marks for beginning and end put them around texts, here and wherever it is loaded.

    One trained for masked language modelling here has them, and puts none by itself.
    """
    from tokenizers.processors import TemplateProcessing

    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    if first is None or last is None or tokenizer("a")["input_ids"][0] == first:
        return
    cls, sep = tokenizer.cls_token, tokenizer.sep_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, first), (sep, last)],
    )
