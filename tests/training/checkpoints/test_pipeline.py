"""A checkpoint gives the model that its run would have written as final/."""

import json
import shutil

import pytest
import torch

import train_guidance
from pipelines.champ_pipeline import ChampPipeline
from system.errors import ConfigError, ModelError
from training.checkpoints.pipeline import is_checkpoint, pipeline_of_checkpoint


@pytest.fixture(scope="module")
def output_dir(tiny_base, tiny_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "out"
    flags = {
        "pretrained_model_name_or_path": tiny_base, "train_data_dir": tiny_data, "output_dir": folder,
        "logging_dir": folder / "logs", "guidance_types": "music pose", "guidance_input_channels": "35 134",
        "guidance_embedding_channels": 32, "guidance_block_out_channels": "8 16 32 32", "resolution": 64,
        "sequence_length": 4, "num_workers": 0, "max_train_steps": 2, "lr_warmup_steps": 0,
        "learning_rate": 1e-2, "checkpointing_steps": 2, "validation_steps": 9, "num_validation_clips": 1,
        "num_inference_steps": 1, "ema_decay": 0.5,
    }  # fmt: skip
    argv = [word for name, value in flags.items() for word in (f"--{name}", *str(value).split())]
    assert train_guidance.main([*argv, "--use_ema"]) == 0
    return folder


def test_it_is_the_final_model_with_its_averaged_weights(output_dir):
    pipeline = pipeline_of_checkpoint(output_dir / "checkpoint-2")
    final = ChampPipeline.from_pretrained(output_dir / "final")
    expected = final.model.state_dict()
    for name, value in pipeline.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)
    for name in ("height", "width", "sequence_length", "frame_stride", "fit"):
        assert pipeline.config[name] == final.config[name]
    expected = {name: value for name, value in final.scheduler.config.items() if not name.startswith("_")}
    assert {name: pipeline.scheduler.config[name] for name in expected} == expected


def test_what_is_no_whole_checkpoint_is_one_line(output_dir, tmp_path):
    assert is_checkpoint(output_dir / "checkpoint-2") and not is_checkpoint(output_dir / "final")
    with pytest.raises(ConfigError, match="no such folder"):
        pipeline_of_checkpoint(tmp_path / "checkpoint-9")
    (tmp_path / "checkpoint-9").mkdir()
    with pytest.raises(ConfigError, match="not a whole checkpoint"):
        pipeline_of_checkpoint(tmp_path / "checkpoint-9")


def test_a_base_that_is_not_where_the_run_had_it_is_one_line_with_the_fix(output_dir, tiny_base, tmp_path):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(output_dir / "checkpoint-2", checkpoint)
    state = checkpoint / "trainer_state.json"
    text = state.read_text(encoding="utf-8")
    assert str(tiny_base) in text
    state.write_text(text.replace(str(tiny_base), str(tmp_path / "gone")), encoding="utf-8")
    with pytest.raises(ModelError, match="gone.* start this command in the folder where"):
        pipeline_of_checkpoint(checkpoint)


@pytest.mark.parametrize("says_which", [True, False])
def test_another_base_at_the_same_path_is_refused(output_dir, tmp_path, says_which):
    checkpoint = tmp_path / "checkpoint-2"
    shutil.copytree(output_dir / "checkpoint-2", checkpoint)
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    assert state["frozen_digests"].keys() == {"vae", "image_encoder"}
    if says_which:
        state["frozen_digests"]["vae"] = "of other weights"
        path.write_text(json.dumps(state), encoding="utf-8")
        with pytest.raises(ConfigError, match=r"another base: vae \(.*\) had other weights then: put those"):
            pipeline_of_checkpoint(checkpoint)
    else:  # an older checkpoint, which does not say
        path.write_text(json.dumps(state | {"frozen_digests": {}}), encoding="utf-8")
        assert pipeline_of_checkpoint(checkpoint) is not None
