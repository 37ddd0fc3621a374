"""Models that no family can read are refused at the start, with a reason, before a row is lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

from mld_core.adapters.registry import UnknownDetectorError, find_adapter


def owl() -> Any:
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sight = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "image_size": 32,
        "patch_size": 16,
    }
    heads = {"num_attention_heads": 2}
    config = transformers.OwlViTConfig(
        text_config={**text, **heads}, vision_config={**sight, **heads}, projection_dim=16
    )
    return transformers.OwlViTForObjectDetection(config)


def grounding_dino() -> Any:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    words = transformers.BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    small = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone, text_config=words, num_queries=5, encoder_attention_heads=2,
        decoder_attention_heads=2, **small,
    )  # fmt: skip
    return transformers.GroundingDinoForObjectDetection(config)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(owl, "words of a text"), (grounding_dino, "words of a text")],
)
def test_the_reason_is_told(make: Any, reason: str) -> None:
    with pytest.raises(UnknownDetectorError, match=reason):
        find_adapter(make())


def test_a_wrapper_says_so_at_the_start_and_the_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from mld_core.tracing.run.recorder import Recorder

    model = owl()
    recorder = Recorder(model_name="net", version_name="v", store=str(tmp_path), task="detection")
    recorder.start(model, recorder.resolve_names(model), rank=0, world_size=1, framework="")
    assert "words of a text" in caplog.text
    recorder.begin_pass("val", 0, mode="eval")
    recorder.begin_batch({"pixel_values": torch.zeros(1, 3, 32, 32)})
    recorder.record({"pixel_values": torch.zeros(1, 3, 32, 32)}, batch_idx=0)
    recorder.end_pass()
    assert recorder.finish().rows_lost == 0
