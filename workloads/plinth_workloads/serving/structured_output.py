"""Texts that have to look as a request says: only tokens are let through with which they still can.

Enters: a schema, an expression, choices or a grammar; then a row's logits before each token, and the token. Leaves: the
logits without the tokens that cannot follow, and whether the text is complete. It stands alone because it is the only
place that knows llguidance (https://github.com/guidance-ai/llguidance), whose compiling is kept off the event loop and
off the thread that decodes.

Shapes: N tokens of the tokenizer and one for the end, V vocabulary of the model.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from plinth_workloads.serving.engine import EngineOverloaded, GenerationFailed, InvalidParameter, StructuredOutput
from plinth_workloads.serving.structure_protocol import JSON_OPTIONS

MAX_STRUCTURE_BYTES = 64 * 1024
"""A schema of so many optional properties takes llguidance 1.9 half a second to compile, on a slow core, and one of
twice as many four times that. What is short and grows while it is compiled, llguidance's own limits end."""

_MAX_ITEMS = 500_000
"""Of the parser, for each token: a tenth, llguidance's own limit, is not enough for 50 optional properties and a
vocabulary of 128,000 tokens. So many are 25 milliseconds, by llguidance's account."""

_MAX_CACHED = 64
_MAX_COMPILING = 32
_MAX_REASON_CHARACTERS = 300

_END = "<|plinth: the text may end|>"
"""A token beside the tokenizer's, allowed where the text may end: models have one token for that, several or none."""


class Constraint:
    """What one text has to look like, and which tokens can come next.

    Args:
        matcher: At the beginning of the text; it is the constraint's own.
        allowed_N: Which tokens can be the first; the last is the end.
        end_ids: The model's tokens that end a text.
    """

    def __init__(self, matcher: LLMatcher, allowed_N: Tensor, *, end_ids: Set[int]) -> None:
        self._matcher = matcher
        self._allowed_N = allowed_N
        self._end_ids = end_ids

    @property
    def is_complete(self) -> bool:
        """Whether the text can only end here, which a model without such a token cannot say."""
        return not self._allowed_N[:-1].any()

    def apply_(self, logits_V: Tensor) -> None:
        """Set the logits of all tokens that cannot come next to -inf, in place."""
        forbidden_V = torch.ones(len(logits_V), dtype=torch.bool)
        num_shared = min(len(self._allowed_N) - 1, len(logits_V))
        forbidden_V[:num_shared] = ~self._allowed_N[:num_shared]
        forbidden_V[list(self._end_ids)] = not self._allowed_N[-1]
        logits_V.masked_fill_(forbidden_V.to(logits_V.device), float("-inf"))

    def add(self, token: int) -> None:
        """Take a token into account that was made.

        Raises:
            GenerationFailed: It cannot follow, or what can is too much to compute.
        """
        if token in self._end_ids:
            return
        if self._matcher.consume_token(token):
            self._allowed_N = _allowed_next(self._matcher)
        if self._matcher.is_error():
            raise GenerationFailed(f"the text could not be kept to its structure: {_reason_of(self._matcher)}")


class StructuredOutputs:
    """Compiles what texts have to look like for one model, one at a time, and remembers the last ones.

    Args:
        tokenizer: A fast one.
        end_ids: The model's tokens that end a text; ids that its logits do not have are left out.
        vocab_size: V.
    """

    def __init__(self, tokenizer: Any, *, end_ids: Set[int], vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self._end_ids = frozenset(token for token in end_ids if 0 <= token < vocab_size)
        self._compiler = ThreadPoolExecutor(max_workers=1, thread_name_prefix="structured-output")
        self._num_compiling = 0
        # The compiler's own:
        self._known_tokens: LLTokenizer | None = None
        self._compiled: OrderedDict[tuple[str, str], tuple[LLMatcher, Tensor]] = OrderedDict()

    async def constraint_of(self, wanted: StructuredOutput | None) -> Constraint | None:
        """The beginning of a text that has to look so; None for any text.

        Raises:
            InvalidParameter: It cannot be compiled, or no text looks so.
            EngineOverloaded: Too many wait to be compiled.
        """
        if wanted is None:
            return None
        if len(wanted.text.encode()) > MAX_STRUCTURE_BYTES:
            raise _refusal(wanted, f"it has more than {MAX_STRUCTURE_BYTES // 1024} KiB; shorten it")
        if self._num_compiling >= _MAX_COMPILING:
            raise EngineOverloaded(f"{self._num_compiling} structures are being compiled already; try again later")
        self._num_compiling += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._compiler, self._begin, wanted)
        finally:
            self._num_compiling -= 1

    def close(self) -> None:
        """End the thread that compiles."""
        self._compiler.shutdown(wait=False)

    # What follows runs in the compiler's thread.

    def _begin(self, wanted: StructuredOutput) -> Constraint:
        if self._known_tokens is None:
            self._known_tokens = _tokens_of(self._tokenizer, wanted)
        key = (wanted.kind, wanted.text)
        if key not in self._compiled:
            self._compiled[key] = _compile(self._known_tokens, wanted)
        self._compiled.move_to_end(key)
        if len(self._compiled) > _MAX_CACHED:
            self._compiled.popitem(last=False)
        matcher, allowed_N = self._compiled[key]
        return Constraint(matcher.deep_copy(), allowed_N, end_ids=self._end_ids)


def _tokens_of(tokenizer: Any, wanted: StructuredOutput) -> LLTokenizer:
    """The tokenizer as llguidance reads it, with one token more."""
    try:
        known = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        known.no_padding()
        known.no_truncation()
        known.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
        return LLTokenizer(known.to_str(), eos_token=known.token_to_id(_END))
    except ValueError as error:
        raise _refusal(wanted, f"this model's tokenizer cannot be held to a structure: {error}") from error


def _compile(tokens: LLTokenizer, wanted: StructuredOutput) -> tuple[LLMatcher, Tensor]:
    """A matcher at the beginning of a text, and which tokens can be the first."""
    try:
        grammar = _grammar_of(wanted)
    except ValueError as error:
        raise _refusal(wanted, str(error)) from error
    # Silent, and with short errors: what a client wrote stays out of the log.
    matcher = LLMatcher(
        tokens, grammar, log_level=0, limits=LLParserLimits(step_max_items=_MAX_ITEMS, verbose_errors=False)
    )
    # Some of what is too much to compute, or can never be satisfied, shows with the first token only.
    allowed_N = None if matcher.is_error() else _allowed_next(matcher)
    if allowed_N is None or matcher.is_error():
        raise _refusal(wanted, _reason_of(matcher))
    if not allowed_N[:-1].any():
        raise _refusal(wanted, "only the empty text satisfies it")
    return matcher, allowed_N


def _allowed_next(matcher: LLMatcher) -> Tensor:
    """Which tokens can come next (N); the last is the end."""
    return torch.frombuffer(bytearray(matcher.compute_logit_bias()), dtype=torch.uint8) > 0


def _grammar_of(wanted: StructuredOutput) -> str:
    match wanted.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(wanted.text, overrides=cast(Any, JSON_OPTIONS))
        case "regex":
            return LLMatcher.grammar_from_regex(wanted.text)
        case "choice":
            texts = (json.dumps(text, ensure_ascii=False) for text in json.loads(wanted.text))
            # One terminal: of several, the parser would take the first that fits, "a" for "ab".
            return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {' | '.join(texts)}")
        case "grammar":
            return LLMatcher.grammar_from_lark(wanted.text)


def _reason_of(matcher: LLMatcher) -> str:
    """The library's reason on one line."""
    reason = " ".join(matcher.get_error().split("<non-verbose/>")[0].split())
    return "no text satisfies it" if reason.startswith("NoExtension") else reason[:_MAX_REASON_CHARACTERS]


def _refusal(wanted: StructuredOutput, reason: str) -> InvalidParameter:
    return InvalidParameter(wanted.param, f"{wanted.param}: the {wanted.kind.replace('_', ' ')} is refused: {reason}")
