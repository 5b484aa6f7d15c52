"""The small vision-language model: GLM-4.5V's architecture with small numbers."""

from typing import Any

from examples.small_world.language_model.pictures import MERGE, PATCH
from examples.small_world.render import SIZE

WIDTH = 256
TEXT_LAYERS = 2
VISION_LAYERS = 5
VISION_WIDTH = 192
"""As the shipped CLIP, whose weights the image encoder starts from."""
VOCABULARY = 1280
"""Room for the pieces of `tokens`, which may grow."""
SPECIAL = (
    *("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"),
    *("<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|image|>"),
    *("<|begin_of_video|>", "<|end_of_video|>", "<|video|>"),
    *("<think>", "</think>", "<|begin_of_box|>", "<|end_of_box|>"),
)


def make_model() -> Any:
    """Random weights with a standard deviation of about 1 / sqrt(width); 0.02 does not learn."""
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration

    ids = {token: number for number, token in enumerate(SPECIAL)}
    config = Glm4vMoeConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_hidden_layers": TEXT_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "moe_intermediate_size": WIDTH // 4,
            "first_k_dense_replace": 1,
            "max_position_embeddings": 4096,
            "initializer_range": 0.06,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|endoftext|>"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [4, 2, 2],
            },
        },
        vision_config={
            "depth": VISION_LAYERS,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": WIDTH,
            "num_heads": 6,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "axial", "rope_theta": 1e30},  # nearly no rotation
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "image_size": SIZE,
            "out_hidden_size": WIDTH,
            "initializer_range": 0.06,
        },
        image_token_id=ids["<|image|>"],
        video_token_id=ids["<|video|>"],
        image_start_token_id=ids["<|begin_of_image|>"],
        image_end_token_id=ids["<|end_of_image|>"],
        video_start_token_id=ids["<|begin_of_video|>"],
        video_end_token_id=ids["<|end_of_video|>"],
    )
    model = Glm4vMoeForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|endoftext|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def image_processor() -> Any:
    """Scales every image to about 64 x 64 pixels: 16 visual tokens."""
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil

    area = 2 * SIZE * SIZE  # an image counts as two frames
    return Glm4vImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": area, "longest_edge": area},
    )
