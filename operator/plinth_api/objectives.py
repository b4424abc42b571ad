"""The pretraining objectives, exactly one of which a PretrainJob names by its key."""

from pydantic import Field

from plinth_api.base import ApiModel, exactly_one_of


class CausalLM(ApiModel):
    """Predict the next token."""


class MaskedLM(ApiModel):
    """Predict masked tokens (BERT, https://arxiv.org/abs/1810.04805)."""

    mask_probability: float = Field(default=0.15, ge=0.01, le=0.9, description="maskProbability of a token.")
    whole_word: bool = Field(default=False, description="wholeWord masks all pieces of a word together.")
    next_sentence: bool = Field(default=False, description="nextSentence adds BERT's second objective.")


class SpanDenoising(ApiModel):
    """Restore spans that were replaced by sentinels (T5, https://arxiv.org/abs/1910.10683)."""

    noise_density: float = Field(
        default=0.15, ge=0.01, le=0.9, description="noiseDensity is the part of the tokens that is replaced."
    )
    mean_span_length: float = Field(default=3.0, ge=1, le=100, description="meanSpanLength in tokens.")


class ContrastiveText(ApiModel):
    """Bring embeddings of texts that belong together close (https://arxiv.org/abs/2201.10005)."""

    temperature: float = Field(default=0.05, ge=0.001, le=10, description="temperature of the softmax.")


class ContrastiveImageText(ApiModel):
    """Bring embeddings of images and their texts close (CLIP, https://arxiv.org/abs/2103.00020)."""


class ImageTextMatching(ApiModel):
    """Tell whether a text belongs to an image (BLIP, https://arxiv.org/abs/2201.12086)."""


class MaskedImage(ApiModel):
    """Restore masked patches (MAE, https://arxiv.org/abs/2111.06377)."""

    mask_ratio: float = Field(
        default=0.75, ge=0.01, le=0.99, description="maskRatio is the part of the patches that is masked."
    )


class Diffusion(ApiModel):
    """Predict the noise added to an image or latent (https://arxiv.org/abs/2006.11239)."""

    num_train_timesteps: int = Field(
        default=1000, ge=1, le=100000, description="numTrainTimesteps of the noise schedule."
    )


class MaskedAudio(ApiModel):
    """Tell masked speech units apart (wav2vec 2.0, https://arxiv.org/abs/2006.11477)."""

    mask_probability: float = Field(
        default=0.065, ge=0.001, le=0.9, description="maskProbability of a time step to start a span."
    )


class Autoencoder(ApiModel):
    """Compress and restore (VAE, https://arxiv.org/abs/1312.6114)."""

    kl_weight: float = Field(default=1e-6, ge=0, le=100, description="klWeight of the prior in the loss.")


class MaskedGraph(ApiModel):
    """Restore masked nodes of a graph (https://arxiv.org/abs/2205.10803)."""

    mask_ratio: float = Field(
        default=0.5, ge=0.01, le=0.99, description="maskRatio is the part of the nodes that is masked."
    )


class MaskedVideo(ApiModel):
    """Restore masked tubes of a video (VideoMAE, https://arxiv.org/abs/2203.12602)."""

    mask_ratio: float = Field(
        default=0.9, ge=0.01, le=0.99, description="maskRatio is the part of the tubes that is masked."
    )


class SequenceModelling(ApiModel):
    """Predict actions of trajectories (Decision Transformer, https://arxiv.org/abs/2106.01345)."""


class Objective(ApiModel):
    """What the model learns to do; exactly one."""

    rules = (
        exactly_one_of(
            "causalLM",
            "maskedLM",
            "spanDenoising",
            "contrastiveText",
            "contrastiveImageText",
            "imageTextMatching",
            "maskedImage",
            "diffusion",
            "maskedAudio",
            "autoencoder",
            "maskedGraph",
            "maskedVideo",
            "sequenceModelling",
        ),
    )

    causal_lm: CausalLM | None = Field(default=None, alias="causalLM", description="causalLM predicts the next token.")
    masked_lm: MaskedLM | None = Field(default=None, alias="maskedLM", description="maskedLM predicts masked tokens.")
    span_denoising: SpanDenoising | None = Field(default=None, description="spanDenoising restores replaced spans.")
    contrastive_text: ContrastiveText | None = Field(default=None, description="contrastiveText embeds pairs of texts.")
    contrastive_image_text: ContrastiveImageText | None = Field(
        default=None, description="contrastiveImageText embeds images and their texts."
    )
    image_text_matching: ImageTextMatching | None = Field(
        default=None, description="imageTextMatching tells whether a text belongs to an image."
    )
    masked_image: MaskedImage | None = Field(default=None, description="maskedImage restores masked patches.")
    diffusion: Diffusion | None = Field(default=None, description="diffusion predicts noise.")
    masked_audio: MaskedAudio | None = Field(default=None, description="maskedAudio learns speech units.")
    autoencoder: Autoencoder | None = Field(default=None, description="autoencoder compresses and restores.")
    masked_graph: MaskedGraph | None = Field(default=None, description="maskedGraph restores masked nodes.")
    masked_video: MaskedVideo | None = Field(default=None, description="maskedVideo restores masked tubes.")
    sequence_modelling: SequenceModelling | None = Field(
        default=None, description="sequenceModelling predicts actions of trajectories."
    )
