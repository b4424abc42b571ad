"""What a FineTuneJob teaches (task) and which weights it moves (method); exactly one key of each."""

from pydantic import Field

from plinth_api.base import ApiModel, LongText, ShortText, exactly_one_of
from plinth_api.common import ModelRef


class Instruction(ApiModel):
    """Answer as the examples do; the loss counts the answers only."""


class Completion(ApiModel):
    """Go on with text; the loss counts every token of text, or the completions of prompt and completion pairs."""


class Classification(ApiModel):
    """Give a text one of the labels found in the data."""

    multi_label: bool = Field(default=False, description="multiLabel lets a text have several labels.")


class TokenClassification(ApiModel):
    """Give each word one of the labels found in the data."""


class Embedding(ApiModel):
    """Embed texts that belong together close to each other."""

    temperature: float = Field(default=0.05, ge=0.001, le=10, description="temperature of the softmax.")


class DPO(ApiModel):
    """Direct preference optimisation (https://arxiv.org/abs/2305.18290)."""

    beta: float = Field(
        default=0.1, ge=0.0001, le=100, description="beta is the strength of the tie to the reference model."
    )


class ORPO(ApiModel):
    """Odds-ratio preference optimisation (https://arxiv.org/abs/2403.07691)."""

    beta: float = Field(default=0.1, ge=0.0001, le=100, description="beta is the weight of the odds ratio in the loss.")


class KTO(ApiModel):
    """Kahneman-Tversky optimisation (https://arxiv.org/abs/2402.01306)."""

    beta: float = Field(
        default=0.1, ge=0.0001, le=100, description="beta is the strength of the tie to the reference model."
    )


class Preference(ApiModel):
    """Prefer the chosen answer to the rejected one."""

    rules = (exactly_one_of("dpo", "orpo", "kto"),)

    dpo: DPO | None = Field(default=None, description="dpo is direct preference optimisation.")
    orpo: ORPO | None = Field(default=None, description="orpo is odds-ratio preference optimisation.")
    kto: KTO | None = Field(default=None, description="kto is Kahneman-Tversky optimisation.")


class Reward(ApiModel):
    """Score the chosen answer above the rejected one."""


class GRPO(ApiModel):
    """Group-relative policy optimisation (https://arxiv.org/abs/2402.03300)."""

    num_generations: int = Field(
        default=8, ge=2, le=1024, description="numGenerations is the number of answers to a prompt."
    )
    beta: float = Field(
        default=0.04, ge=0, le=100, description="beta is the weight of the divergence from the reference model."
    )


class Reinforcement(ApiModel):
    """Learn from rewards of the model's own answers."""

    rules = (exactly_one_of("grpo"),)

    grpo: GRPO | None = Field(default=None, description="grpo is group-relative policy optimisation.")
    reward: ModelRef | None = Field(default=None, description="reward is the model that scores answers.")


class Distillation(ApiModel):
    """Match the distribution of a larger model (https://arxiv.org/abs/1503.02531)."""

    teacher: ModelRef = Field(description="teacher is the model to match.")
    temperature: float = Field(default=1.0, ge=0.01, le=100, description="temperature of both distributions.")
    alpha: float = Field(default=0.5, ge=0, le=1, description="alpha is the weight of the teacher beside the data.")


class Task(ApiModel):
    """What the model is taught; exactly one."""

    rules = (
        exactly_one_of(
            "instruction",
            "completion",
            "classification",
            "tokenClassification",
            "embedding",
            "preference",
            "reward",
            "reinforcement",
            "distillation",
        ),
    )

    instruction: Instruction | None = Field(default=None, description="instruction teaches answers.")
    completion: Completion | None = Field(default=None, description="completion teaches to go on with text.")
    classification: Classification | None = Field(default=None, description="classification teaches labels of texts.")
    token_classification: TokenClassification | None = Field(
        default=None, description="tokenClassification teaches labels of words."
    )
    embedding: Embedding | None = Field(default=None, description="embedding teaches which texts belong together.")
    preference: Preference | None = Field(default=None, description="preference teaches which answer is better.")
    reward: Reward | None = Field(default=None, description="reward teaches to score answers.")
    reinforcement: Reinforcement | None = Field(default=None, description="reinforcement learns from rewards.")
    distillation: Distillation | None = Field(default=None, description="distillation learns from a teacher.")


class Full(ApiModel):
    """All weights move."""


class LoRA(ApiModel):
    """Low-rank adapters beside frozen weights (https://arxiv.org/abs/2106.09685)."""

    r: int = Field(default=16, ge=1, le=1024, description="r is the rank.")
    alpha: int = Field(default=32, ge=1, le=8192, description="alpha scales the adapter by alpha / r.")
    dropout: float = Field(default=0.0, ge=0, le=0.9, description="dropout before the adapter.")
    target_modules: ShortText = Field(
        default="all-linear",
        description="targetModules: all-linear, or module names separated by commas: q_proj,v_proj.",
    )


class QLoRA(LoRA):
    """LoRA over weights quantised to 4 bits (https://arxiv.org/abs/2305.14314)."""


class DoRA(LoRA):
    """LoRA with magnitude and direction apart (https://arxiv.org/abs/2402.09353)."""


class IA3(ApiModel):
    """Learned scales of keys, values and feed-forward activations (https://arxiv.org/abs/2205.05638)."""


class AdaptionPrompt(ApiModel):
    """LLaMA-Adapter (https://arxiv.org/abs/2303.16199)."""

    adapter_length: int = Field(default=10, ge=1, le=1024, description="adapterLength in tokens.")
    adapter_layers: int = Field(
        default=8, ge=1, le=1024, description="adapterLayers counts the top layers with an adapter."
    )


class Prefix(ApiModel):
    """Learned keys and values before every layer (https://arxiv.org/abs/2101.00190)."""

    num_virtual_tokens: int = Field(default=20, ge=1, le=4096, description="numVirtualTokens of the prefix.")


class Prompt(ApiModel):
    """Learned embeddings before the input (https://arxiv.org/abs/2104.08691)."""

    num_virtual_tokens: int = Field(default=20, ge=1, le=4096, description="numVirtualTokens of the prompt.")
    init_text: LongText | None = Field(
        default=None,
        description="initText whose embeddings the prompt starts from, cut or repeated to numVirtualTokens; random "
        "words of the vocabulary when left out.",
    )


class PromptEncoder(ApiModel):
    """Learned embeddings made by a small network (https://arxiv.org/abs/2103.10385)."""

    num_virtual_tokens: int = Field(default=20, ge=1, le=4096, description="numVirtualTokens of the prompt.")
    encoder_hidden_size: int = Field(default=128, ge=1, le=65536, description="encoderHiddenSize of the network.")


MERGING_METHODS = ("lora", "qlora", "dora", "ia3")
"""Methods whose weights can be added to the model's own."""

VIRTUAL_TOKEN_METHODS = ("prefix", "prompt", "promptEncoder")
"""Methods that put learned positions before every document."""


class Method(ApiModel):
    """Which weights move; exactly one."""

    rules = (
        exactly_one_of("full", "lora", "qlora", "dora", "ia3", "adaptionPrompt", "prefix", "prompt", "promptEncoder"),
    )

    full: Full | None = Field(default=None, description="full moves all weights.")
    lora: LoRA | None = Field(default=None, description="lora trains low-rank adapters.")
    qlora: QLoRA | None = Field(default=None, description="qlora trains low-rank adapters over 4-bit weights.")
    dora: DoRA | None = Field(default=None, description="dora trains low-rank adapters with magnitudes.")
    ia3: IA3 | None = Field(default=None, description="ia3 trains scales of activations.")
    adaption_prompt: AdaptionPrompt | None = Field(default=None, description="adaptionPrompt is LLaMA-Adapter.")
    prefix: Prefix | None = Field(default=None, description="prefix trains keys and values before every layer.")
    prompt: Prompt | None = Field(default=None, description="prompt trains embeddings before the input.")
    prompt_encoder: PromptEncoder | None = Field(
        default=None, description="promptEncoder trains a network that makes a prompt."
    )

    @property
    def name(self) -> str:
        """The method's key, as it is in YAML: promptEncoder."""
        return next(iter(self.to_wire()))

    @property
    def merges(self) -> bool:
        """Whether what is trained can be added to the model's own weights."""
        return self.name in MERGING_METHODS

    @property
    def num_virtual_tokens(self) -> int:
        """Positions that the method puts before every document; 0 for a method that puts none."""
        chosen = self.prefix or self.prompt or self.prompt_encoder
        return chosen.num_virtual_tokens if chosen else 0
