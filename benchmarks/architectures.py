"""Thirty small Hugging Face architectures with random weights: what lift is measured on.

Each row of `ARCHITECTURES` names a class and a config of transformers, the inputs it takes and how many attentions
torch executes in one forward pass (a router's softmax is none). Biases and norms that transformers initialises to zero
or one are drawn anew, so that no error hides behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import graphwright as gw

VOCABULARY = 512
TEXT = {0: "batch", 1: "sequence"}
TARGET = {0: "batch", 1: "target"}
BATCH = {0: "batch"}

Inputs = tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]


def text(length: int = 16) -> Inputs:
    """Token ids and mask [2, length]; the second row is padded."""
    ids = torch.randint(5, VOCABULARY, (2, length))
    mask = torch.ones_like(ids)
    mask[1, -5:] = 0
    return {"input_ids": ids, "attention_mask": mask}, {"input_ids": TEXT, "attention_mask": TEXT}


def text_to_text() -> Inputs:
    """As `text`, with eight tokens of a decoder."""
    inputs, dims = text()
    ids = torch.randint(5, VOCABULARY, (2, 8))
    return {**inputs, "decoder_input_ids": ids}, {**dims, "decoder_input_ids": TARGET}


def image() -> Inputs:
    """Pixels [2, 3, 32, 32]."""
    return {"pixel_values": torch.randn(2, 3, 32, 32)}, {"pixel_values": BATCH}


def sound() -> Inputs:
    """A wave [2, 3200]."""
    return {"input_values": torch.randn(2, 3200)}, {"input_values": BATCH}


def speech_to_text() -> Inputs:
    """Mel features [2, 16, 64] and eight tokens of a decoder."""
    inputs = {"input_features": torch.randn(2, 16, 64), "decoder_input_ids": torch.randint(5, VOCABULARY, (2, 8))}
    return inputs, {"input_features": BATCH, "decoder_input_ids": TARGET}


@dataclass(frozen=True)
class Architecture:
    """One row: class and config by name, their settings, the inputs, the attentions in one pass."""

    kind: str
    config: str
    settings: dict[str, Any]
    inputs: Callable[[], Inputs] = text
    sites: int = 2

    def spec(self, name: str, attention: str = "sdpa") -> gw.ModelSpec:
        """The model with random weights (seeded); `attention` is eager or sdpa, eager where it has no sdpa."""
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.settings)
        config.use_cache = False
        build = getattr(transformers, self.kind)._from_config
        try:
            module = build(config, attn_implementation=attention)
        except ValueError:
            module = build(config, attn_implementation="eager")
        _draw_anew(module)
        inputs, dims = self.inputs()
        return gw.ModelSpec(module.eval(), inputs, dims, name=name)


def _draw_anew(module: torch.nn.Module) -> None:
    """Biases that start at zero and norms that start at one get small random values."""
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)


ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}
DECODER = {**ENCODER, "num_key_value_heads": 2}
HEADS = {**DECODER, "head_dim": 16}
VISION = {key: ENCODER[key] for key in ENCODER if key not in ("vocab_size", "max_position_embeddings")}
VISION |= {"image_size": 32, "patch_size": 8}
GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4}
T5 = {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WAVE: dict[str, Any] = {"conv_dim": (32, 32, 32), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4)}
WAVE |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
DISTIL = {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}
OPT = {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 64, "vocab_size": VOCABULARY}
OPT |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
WHISPER = {"vocab_size": VOCABULARY, "d_model": 64, "num_mel_bins": 16, "max_source_positions": 32}
WHISPER |= {f"{part}_{key}": size for part in ("encoder", "decoder") for key, size in (("layers", 2), ("ffn_dim", 128))}
WHISPER |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_target_positions": 32}
WHISPER |= {**SPECIAL, "decoder_start_token_id": 1}
MODERN = {**ENCODER, **SPECIAL, "num_hidden_layers": 3, "local_attention": 8, "global_attn_every_n_layers": 3}
DEBERTA = {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}

ARCHITECTURES = {
    "bert": Architecture("BertModel", "BertConfig", ENCODER),
    "roberta": Architecture("RobertaModel", "RobertaConfig", ENCODER),
    "distilbert": Architecture("DistilBertModel", "DistilBertConfig", {**DISTIL, "max_position_embeddings": 64}),
    "albert": Architecture("AlbertModel", "AlbertConfig", {**ENCODER, "embedding_size": 32}),
    "deberta_v2": Architecture("DebertaV2Model", "DebertaV2Config", DEBERTA),
    "modernbert": Architecture(
        "ModernBertModel", "ModernBertConfig", {**MODERN, "cls_token_id": 1, "sep_token_id": 2}, sites=3
    ),
    "roformer": Architecture("RoFormerModel", "RoFormerConfig", ENCODER),
    "gpt2": Architecture("GPT2LMHeadModel", "GPT2Config", {**GPT, "n_positions": 64}),
    "gpt_neox": Architecture("GPTNeoXForCausalLM", "GPTNeoXConfig", ENCODER),
    "opt": Architecture("OPTForCausalLM", "OPTConfig", OPT),
    "bloom": Architecture(
        "BloomForCausalLM", "BloomConfig", {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4}
    ),
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", DECODER),
    "mistral": Architecture("MistralForCausalLM", "MistralConfig", {**DECODER, "sliding_window": 8}),
    "mixtral": Architecture(
        "MixtralForCausalLM", "MixtralConfig", {**DECODER, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "qwen2": Architecture("Qwen2ForCausalLM", "Qwen2Config", DECODER),
    "qwen3": Architecture("Qwen3ForCausalLM", "Qwen3Config", HEADS),
    "gemma": Architecture("GemmaForCausalLM", "GemmaConfig", HEADS),
    "gemma2": Architecture("Gemma2ForCausalLM", "Gemma2Config", {**HEADS, "sliding_window": 8}),
    "phi3": Architecture("Phi3ForCausalLM", "Phi3Config", {**DECODER, "pad_token_id": 0}),
    "phi": Architecture("PhiForCausalLM", "PhiConfig", DECODER),
    "olmo2": Architecture("Olmo2ForCausalLM", "Olmo2Config", DECODER),
    "granite": Architecture("GraniteForCausalLM", "GraniteConfig", DECODER),
    "t5_encoder": Architecture("T5EncoderModel", "T5Config", T5),
    "t5": Architecture("T5Model", "T5Config", T5, text_to_text, 6),
    "vit": Architecture("ViTModel", "ViTConfig", VISION, image),
    "beit": Architecture("BeitModel", "BeitConfig", {**VISION, "use_relative_position_bias": True}, image),
    "dinov2": Architecture(
        "Dinov2Model", "Dinov2Config", {key: VISION[key] for key in VISION if key != "intermediate_size"}, image
    ),
    "siglip_vision": Architecture("SiglipVisionModel", "SiglipVisionConfig", VISION, image, 3),
    "wav2vec2": Architecture(
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        {**{key: VISION[key] for key in VISION if key not in ("image_size", "patch_size")}, **WAVE},
        sound,
    ),
    "whisper": Architecture("WhisperModel", "WhisperConfig", WHISPER, speech_to_text, 6),
}
