"""What accelerate's configuration may ask for, and that it is taken from accelerate.

Training with it: tests/test_train_guidance.py.
"""

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from system.errors import ConfigError
from training.execution import sharding
from training.settings.fields import TrainingArguments

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}


def test_request_is_taken_from_accelerate():
    environment = dict(FSDP)
    assert sharding.take_request(TrainingArguments(), environment)
    assert environment["ACCELERATE_USE_FSDP"] == "false"  # else it would do it again
    assert not sharding.take_request(TrainingArguments(), environment)
    assert not sharding.take_request(TrainingArguments(), {})
    assert not sharding.take_request(TrainingArguments(), {**FSDP, "WORLD_SIZE": "1"})


@pytest.mark.parametrize(
    ("environment", "settings", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "set fsdp_version: 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params; set it to false"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "give --gradient_checkpointing all"),
        ({"FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true"}, {}, "_offload; set it to false, and give --grad"),
        ({"FSDP_IGNORED_MODULES": "vae"}, {}, "fsdp_ignored_modules; leave it out"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "NO_SHARD"}, {}, "than true or false; set it to true"),
        ({}, {"use_8bit_adam": True}, "cannot shard --use_8bit_adam"),
        ({}, {"mixed_precision": "fp16"}, "use bf16"),
    ],
)
def test_what_cannot_be_done_is_refused(environment, settings, message):
    with pytest.raises(ConfigError, match=message):
        sharding.take_request(TrainingArguments(**settings), {**FSDP, **environment})


@pytest.mark.parametrize("variable", sharding.UNHEEDED)
def test_what_changes_nothing_is_said(variable):
    unasked, why = sharding.UNHEEDED[variable]
    asked = {**FSDP, variable: "another"}
    assert sharding.unheeded_lines(asked) == [f"{variable}=another has no effect: {why}"]
    assert sharding.unheeded_lines({**FSDP, variable: unasked}) == []
    assert sharding.unheeded_lines({**asked, "ACCELERATE_USE_FSDP": "false"}) == []
    assert sharding.unheeded_lines({**asked, "WORLD_SIZE": "1"}) == [
        "FSDP has no effect: one process has nothing to shard"
    ]


@pytest.mark.parametrize(("name", "reshards"), [("fsdp", True), ("zero2", False)])
def test_shipped_configurations_ask_for_what_can_be_done(repository, name, reshards):
    config = OmegaConf.load(repository / f"configs/accelerate/{name}.yaml")
    environment = {name.upper(): str(value) for name, value in config.fsdp_config.items()}
    assert sharding.take_request(TrainingArguments(), {**FSDP, **environment})
    assert sharding.reshards_after_forward(environment) is reshards


def test_a_model_that_is_not_sharded_is_left_alone():
    model, tensor = nn.Linear(2, 2), torch.ones(2)
    with sharding.whole_weights(model):
        assert model.state_dict()["weight"] is not None
    assert sharding.whole_on_main(tensor) is tensor and sharding.own_share(tensor) is tensor
    assert sharding.share_of(tensor, tensor) is tensor and sharding.as_share(tensor, tensor) is tensor
