"""Virtual tokens: learned positions before every document, for the methods prefix, prompt and promptEncoder.

A model and a method enter; the same model leaves, frozen, with a module `virtual_tokens` that is trained. The positions
are put before the decoder's input and taken off its output in here, so whoever calls the model sees logits of the
tokens that it gave. peft has the weights, their first values and their file; its own wrapper of a model is not used: it
hands out longer logits, drops position ids, and adds its tokens again at every step of a decoding cache.

Shapes: B rows, T tokens, P virtual tokens, L layers, H heads of keys, D head size, E embedding size.
"""

import contextlib
import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plinth_api.adaptation import Method
from plinth_api.run import TrainRun
from plinth_workloads.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PEFT_TYPES = {"PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"}
_SAVED = "prompt_embeddings"
"""The one tensor in the file of such an adapter, as peft names it."""


class VirtualTokens(nn.Module):
    """P learned positions: embeddings, or for a prefix the keys and values of every layer.

    Attributes:
        encoder: A peft module that maps numbers 0 to P - 1 to vectors: E wide, or 2 x L x H x D for a prefix.
        config: peft's configuration of it.
        enabled: False lets the model compute as if there were none.
    """

    def __init__(self, encoder: nn.Module, config: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.config = config
        self.enabled = True

    @property
    def num(self) -> int:
        """P."""
        num: int = self.config.num_virtual_tokens
        return num

    def prepend(self, decoder: Any, given: dict[str, Any]) -> tuple[dict[str, Any], int]:
        """The arguments of a decoder's forward with the virtual tokens before them.

        Returns:
            Arguments, and how many positions of the output are virtual. Where a cache holds positions already, they
            hold the virtual tokens too, and nothing changes.
        """
        cache = given.get("past_key_values")
        if not self.enabled or (cache is not None and cache.get_seq_length()):
            return given, 0
        changed = dict(given)
        if given.get("attention_mask") is not None:
            changed["attention_mask"] = F.pad(given["attention_mask"], (self.num, 0), value=1)
        positions_BT = given.get("position_ids")
        if positions_BT is not None:
            changed["position_ids"] = positions_BT + self.num
        if self.config.peft_type == "PREFIX_TUNING":
            batch_size = given["input_ids"].shape[0]
            changed["past_key_values"] = self._in_cache(cache, decoder.config, batch_size)
            return changed, 0
        embeddings_BTE = decoder.get_input_embeddings()(changed.pop("input_ids"))
        vectors_BPE = self._vectors().to(embeddings_BTE.dtype).expand(len(embeddings_BTE), -1, -1)
        changed["inputs_embeds"] = torch.cat([vectors_BPE, embeddings_BTE], dim=1)
        if positions_BT is not None:
            first_BP = torch.arange(self.num, device=positions_BT.device).expand(len(positions_BT), -1)
            changed["position_ids"] = torch.cat([first_BP, changed["position_ids"]], dim=1)
        return changed, self.num

    def saved_form(self, weights: Mapping[str, Tensor]) -> Tensor:
        """What the encoder makes with `weights`, names as in this module, on the CPU; its own may be sharded."""
        own = {name.removeprefix("encoder."): value for name, value in weights.items()}
        with torch.no_grad():
            made: Tensor = torch.func.functional_call(self.encoder, own, (torch.arange(self.num),))
        return made.detach().contiguous()

    def _vectors(self) -> Tensor:
        device = next(self.encoder.parameters()).device
        vectors: Tensor = self.encoder(torch.arange(self.num, device=device))
        return vectors

    def _in_cache(self, cache: Any, model_config: Any, batch_size: int) -> Any:
        from transformers import DynamicCache

        cache = DynamicCache(config=model_config) if cache is None else cache
        heads = self.config.num_attention_heads
        pairs_PLHD = self._vectors().view(self.num, 2 * self.config.num_layers, heads, -1)
        pairs_LBHPD = pairs_PLHD.permute(1, 2, 0, 3)[:, None].expand(-1, batch_size, -1, -1, -1)
        for layer in range(self.config.num_layers):
            cache.update(pairs_LBHPD[2 * layer], pairs_LBHPD[2 * layer + 1], layer)
        return cache


def num_virtual_tokens(model: Any) -> int:
    """How many learned positions the model puts before its input."""
    tokens = getattr(model, "virtual_tokens", None)
    return tokens.num if isinstance(tokens, VirtualTokens) else 0


def run_in_rows_for(model: Any, run: TrainRun) -> TrainRun:
    """The run whose rows a model can be measured on: only the first document of a row sees virtual tokens."""
    if not num_virtual_tokens(model):
        return run
    return run.model_copy(update={"training": run.training.model_copy(update={"packing": False})})


@contextlib.contextmanager
def without_virtual_tokens(model: Any) -> Iterator[None]:
    """The model that stands behind the virtual tokens, where there are any: they change it even before they learn."""
    tokens = getattr(model, "virtual_tokens", None)
    if not isinstance(tokens, VirtualTokens):
        yield
        return
    tokens.enabled = False
    try:
        yield
    finally:
        tokens.enabled = True


def attach_virtual_tokens(
    model: "PreTrainedModel", method: Method, tokenizer: "PreTrainedTokenizerBase", base_uri: str, sequence_length: int
) -> "PreTrainedModel":
    """The model, frozen, behind new virtual tokens.

    They start from words, which trains better than random vectors (https://arxiv.org/abs/2104.08691, section 3.2): the
    embeddings of `initText` or of random words; a prefix from the keys and values that random words have in the model
    (https://arxiv.org/abs/2101.00190, section 7.4).

    Args:
        model: The base model, in evaluation mode.
        method: With prefix, prompt or promptEncoder.
        tokenizer: Of the model, for `initText`.
        base_uri: The base model's registry URI, written into the adapter's configuration.
        sequence_length: Longest row.

    Raises:
        UserError: InvalidSpec where the architecture or its positions do not allow it, or `initText` is empty.
    """
    path = f"spec.method.{method.name}"
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and sequence_length + method.num_virtual_tokens > positions:
        raise UserError(
            "InvalidSpec",
            f"{path}.numVirtualTokens: {method.num_virtual_tokens} virtual tokens and rows of {sequence_length} tokens "
            f"do not fit the model's {positions} positions; lower one of them",
        )
    _decoder_of(model, path)
    ids_P = _first_words(model, method, tokenizer)
    model.requires_grad_(False)
    encoder, config = _new_encoder(model, method, ids_P)
    config.task_type, config.base_model_name_or_path = "CAUSAL_LM", base_uri
    _put_before(model, VirtualTokens(encoder, config), path)
    return model


def save_virtual_tokens(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a PEFT folder.

    Args:
        model: With virtual tokens.
        weights: Of the whole model, on the CPU, by name.
        folder: Is made.
    """
    tokens: VirtualTokens = model.virtual_tokens
    folder.mkdir(parents=True)
    tokens.config.inference_mode = True
    tokens.config.save_pretrained(folder)
    prefix = "virtual_tokens."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    save_file({_SAVED: tokens.saved_form(own)}, folder / ADAPTER_WEIGHTS)


def holds_virtual_tokens(folder: Path) -> bool:
    """Whether the adapter in a PEFT folder is one of virtual tokens."""
    return json.loads((folder / ADAPTER_CONFIG).read_text()).get("peft_type") in _PEFT_TYPES


def load_virtual_tokens(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """The model behind the virtual tokens of a PEFT folder.

    Raises:
        UserError: ModelLoadFailed where they are of another model.
    """
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(folder))
    vectors = load_file(folder / ADAPTER_WEIGHTS).get(_SAVED, torch.empty(0))
    fitting = (config.num_virtual_tokens, model.get_input_embeddings().embedding_dim)
    if config.peft_type == "PREFIX_TUNING":
        pairs = _keys_and_values(model, torch.zeros(1, dtype=torch.long))
        layers, heads, size = pairs.shape[1:] if pairs is not None else (0, 0, 0)
        fitting = (config.num_virtual_tokens, layers * heads * size)
        config.num_layers, config.num_attention_heads = layers // 2, heads
    if tuple(vectors.shape) != fitting:
        raise UserError(
            "ModelLoadFailed",
            f"{folder}: the adapter does not fit the model: it has virtual tokens of shape {list(vectors.shape)}, "
            f"the model needs {list(fitting)}",
        )
    encoder = nn.Embedding.from_pretrained(vectors.to(torch.float32))
    _put_before(model, VirtualTokens(encoder, config), str(folder))
    return model


def _first_words(model: Any, method: Method, tokenizer: Any) -> Tensor:
    """Ids [P] of the words from which virtual tokens start."""
    num = method.num_virtual_tokens
    text = method.prompt.init_text if method.prompt else None
    if text is None:
        return torch.randint(model.get_input_embeddings().num_embeddings, (num,))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError("InvalidSpec", "spec.method.prompt.initText: has no tokens; give it words, or leave it out")
    return torch.tensor(ids * num)[:num]


@torch.no_grad()
def _new_encoder(model: Any, method: Method, ids_P: Tensor) -> tuple[nn.Module, Any]:
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
    from peft.tuners import PrefixEncoder, PromptEmbedding, PromptEncoder

    config: Any
    encoder: Any
    embeddings = model.get_input_embeddings()
    shared = {
        "num_virtual_tokens": method.num_virtual_tokens,
        "num_transformer_submodules": 1,
        "token_dim": embeddings.embedding_dim,
    }
    if method.prefix is not None:
        pairs_PLHD = _keys_and_values(model, ids_P)
        if pairs_PLHD is None:
            raise UserError(
                "InvalidSpec",
                f"spec.method.prefix: {model.config.model_type} does not keep keys and values of one shape in every "
                "layer; use prompt, or lora",
            )
        _, double_layers, heads, size = pairs_PLHD.shape
        sizes = {**shared, "num_layers": double_layers // 2, "num_attention_heads": heads, "token_dim": heads * size}
        config = PrefixTuningConfig(**sizes)
        encoder = PrefixEncoder(config)
        encoder.embedding.weight.copy_(pairs_PLHD.flatten(1))
        return encoder, config
    # The sizes that virtual embeddings do not depend on are written for peft, which asks for them when it loads.
    text_config = model.config.get_text_config()
    shared |= {"num_layers": text_config.num_hidden_layers, "num_attention_heads": text_config.num_attention_heads}
    if method.prompt_encoder is not None:
        config = PromptEncoderConfig(**shared, encoder_hidden_size=method.prompt_encoder.encoder_hidden_size)
        return PromptEncoder(config), config
    config = PromptTuningConfig(**shared)
    encoder = PromptEmbedding(config, embeddings)
    encoder.embedding.weight.copy_(embeddings(ids_P))
    return encoder, config


@torch.no_grad()
def _keys_and_values(model: Any, ids_P: Tensor) -> Tensor | None:
    """What the model keeps of some tokens, as peft stores a prefix: [P, 2 L, H, D], keys before values in each layer.

    None where the layers do not all keep keys and values of one shape.
    """
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    try:
        model(input_ids=ids_P[None].to(model.device), past_key_values=cache, use_cache=True)
    except TypeError:
        return None
    kept: list[Any] = [getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values")]
    if not kept or any(tensor is None or tensor.shape != kept[0].shape for tensor in kept):
        return None
    return torch.cat(kept).permute(2, 0, 1, 3)


def _decoder_of(model: Any, place: str) -> Any:
    """The part of the model between embeddings and output.

    Raises:
        UserError: InvalidSpec where it takes no embeddings, or keeps something else than keys and values.
    """
    decoder = model.get_decoder()
    if not {"inputs_embeds", "past_key_values"} <= set(inspect.signature(decoder.forward).parameters):
        raise UserError(
            "InvalidSpec", f"{place}: virtual tokens cannot be put before {model.config.model_type}; use lora, or full"
        )
    return decoder


def _put_before(model: Any, tokens: VirtualTokens, place: str) -> None:
    """Register the tokens in the model and let its decoder see them."""
    decoder = _decoder_of(model, place)
    inner = decoder.forward
    names = list(inspect.signature(inner).parameters)

    def forward(*args: Any, **kwargs: Any) -> Any:
        given, num_virtual = tokens.prepend(decoder, {**dict(zip(names, args, strict=False)), **kwargs})
        output = inner(**given)
        if num_virtual:
            output.last_hidden_state = output.last_hidden_state[:, num_virtual:]
        return output

    decoder.forward = forward
    model.virtual_tokens = tokens.to(model.device)
