"""Every field, option and variable of accelerate has its place among the settings.

accelerate's own lists (fields of its configuration, options of its launcher, variables that it reads) are
held against the tables below: what a later accelerate adds fails a test until somebody decides what it means.
"""

import dataclasses
import os
import re
import sys
from pathlib import Path

import accelerate
import pytest
import yaml
from accelerate.commands import launch
from accelerate.commands.config.config_args import ClusterConfig, SageMakerConfig
from accelerate.utils import FullyShardedDataParallelPlugin, TorchDynamoPlugin
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from system.errors import ConfigError
from tests.training.settings.test_from_accelerate import (  # noqa: F401 (clean_environment: a fixture)
    PREFIXES,
    clean_environment,
    start,
)
from training.execution import sharding
from training.settings import from_accelerate

PLAIN = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "NO", "num_machines": 1, "num_processes": 1,
    "mixed_precision": "no", "use_cpu": False, "debug": False,
}  # fmt: skip
TWO_GPUS = {"distributed_type": "MULTI_GPU", "num_processes": 2}
FSDP = {"distributed_type": "FSDP", "num_processes": 2}
TWO_MACHINES = {"num_machines": 2, "num_processes": 2, "main_process_ip": "10.0.0.1", "main_process_port": 1}
# How processes are started, and on which part of the machine: that much `accelerate launch` does by itself.
MACHINE = {
    "CUDA_VISIBLE_DEVICES", "KMP_AFFINITY", "KMP_BLOCKTIME", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS",
}  # fmt: skip

# {field: (an example, the settings that it becomes | the words that refuse it | the words that say it)}
TAKEN = {
    "mixed_precision": ({"mixed_precision": "bf16"}, {"mixed_precision": "bf16"}),
    "dynamo_config": ({"dynamo_config": {"dynamo_backend": "INDUCTOR"}}, {"compile": True}),
}
REFUSED = {
    "distributed_type": ({"distributed_type": "MEGATRON_LM", "num_processes": 2}, "asks for MEGATRON_LM"),
    "megatron_lm_config": (
        {**TWO_GPUS, "distributed_type": "MEGATRON_LM", "megatron_lm_config": {"megatron_lm_tp_degree": 2}},
        "asks for MEGATRON_LM",
    ),
    "deepspeed_config": (
        {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {"zero_stage": 2}},
        "asks for DEEPSPEED",
    ),
    "parallelism_config": (
        {**FSDP, "fsdp_config": {"fsdp_version": 2},
         "parallelism_config": {"parallelism_config_tp_size": 2}},
        "asks for parallelism_config",
    ),
    "fsdp_config": ({**FSDP, "fsdp_config": {"fsdp_version": 1}}, "set fsdp_version: 2"),
}  # fmt: skip
SAID = {
    "use_cpu": ({"use_cpu": True}, "the CPU is used"),
    "debug": ({"debug": True}, "checks what the processes exchange"),
}
STARTS_PROCESSES = {
    "num_processes": {"num_processes": 2},  # scripts/launch.py refuses that: tests/test_launchers.py
    "num_machines": TWO_MACHINES,
    "machine_rank": {**TWO_MACHINES, **TWO_GPUS, "machine_rank": 1},
    "main_process_ip": TWO_MACHINES,
    "main_process_port": TWO_MACHINES,
    "same_network": {**TWO_MACHINES, **TWO_GPUS, "machine_rank": 1, "same_network": True},
    "rdzv_backend": {**TWO_GPUS, "rdzv_backend": "c10d"},
    "gpu_ids": {"gpu_ids": "0"},
    "enable_cpu_affinity": {"enable_cpu_affinity": True},  # the launcher hears its own flag alone
    "mpirun_config": {"mpirun_config": {"mpirun_ccl": "1"}},
    # Without mixed_precision fp8, which is refused below, it is not even read.
    "fp8_config": {"fp8_config": {"fp8_backend": "TE"}},
    # For TPUs alone, whose launchers scripts/launch.py refuses.
    "main_training_function": {"main_training_function": "train"},
    "downcast_bf16": {"downcast_bf16": True},
    **{name: {name: "x"} for name in ("tpu_name", "tpu_zone", "command_file")},
    **{name: {name: True} for name in ("tpu_use_cluster", "tpu_use_sudo")},
    **{name: {name: ["x"]} for name in ("commands", "tpu_vm", "tpu_env")},
}
SAGEMAKER = {  # of a launcher that scripts/launch.py refuses
    "ec2_instance_type", "iam_role_name", "image_uri", "profile", "region", "base_job_name",
    "pytorch_version", "transformers_version", "py_version", "sagemaker_inputs_file",
    "sagemaker_metrics_file", "additional_args",
}  # fmt: skip
# Options of `accelerate launch` that are no fields: which launcher, how its processes are watched and logged.
LAUNCHER_OPTIONS = {
    "aws_access_key_id", "aws_secret_access_key", "config_file", "cpu", "env", "help", "log_dir",
    "max_restarts", "module", "monitor_interval", "mpirun_hostfile", "multi_gpu", "no_python",
    "num_cpu_threads_per_process", "quiet", "rdzv_conf", "role", "tee", "tpu", "training_script",
    "training_script_args", "use_deepspeed", "use_fsdp", "use_megatron_lm", "use_parallelism_config", "vm",
}  # fmt: skip
FOREIGN_OPTIONS = {  # of engines that are refused
    "gradient_accumulation_steps", "gradient_clipping", "offload_optimizer_device", "zero_stage",
    "offload_optimizer_nvme_path", "offload_param_device", "offload_param_nvme_path", "zero3_init_flag",
    "zero3_save_16bit_model",
}  # fmt: skip
FOREIGN_PREFIXES = ("deepspeed_", "megatron_lm_", "parallelism_config_", "fp8_")
DYNAMO_OPTIONS = {
    "dynamo_backend", "dynamo_mode", "dynamo_use_dynamic",  # taken over, or refused
    "dynamo_use_fullgraph", "dynamo_use_regional_compilation",  # both as --compile does it anyway
}  # fmt: skip
FSDP_DECIDES = {
    "FSDP_VERSION", "FSDP_RESHARD_AFTER_FORWARD", "FSDP_OFFLOAD_PARAMS", "FSDP_ACTIVATION_CHECKPOINTING",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", "FSDP_IGNORED_MODULES",
}  # fmt: skip
FSDP_VARIABLES = {*FSDP_DECIDES, *sharding.UNHEEDED}
HARMLESS = {
    "ACCELERATE_LOG_LEVEL": "what accelerate logs",
    "ACCELERATE_ENABLE_RICH": "how accelerate's launcher prints",
    "ACCELERATE_BYPASS_DEVICE_MAP": "for models in 8 bits, which are none of ours",
    "ACCELERATE_INIT_INCLUDE_BUFFERS": "our models' buffers are filled all the same",
    "ACCELERATE_ALLOW_CP_STANDALONE": "goes with a parallelism_config, which is refused",
    "ACCELERATE_DEBUG_RDV_FILE": "for accelerate's own debug_launcher",
    "ACCELERATE_GRADIENT_CLIPPING": "goes with DeepSpeed, which is refused",
    "ACCELERATE_CONFIG_DS_FIELDS": "goes with DeepSpeed, which is refused",
}
DYNAMO_VARIABLES = {f"ACCELERATE_{option.upper()}" for option in DYNAMO_OPTIONS}
KNOWN_VARIABLES = {
    *from_accelerate.TAKEN, *from_accelerate.OBEYED, *from_accelerate.REFUSED, *FSDP_VARIABLES, *HARMLESS,
    *DYNAMO_VARIABLES, sharding.USE_FSDP, from_accelerate.SAGEMAKER, "ACCELERATE_USE_SAGEMAKER",
    from_accelerate.DEVICE, "FORK_LAUNCHED",
}  # fmt: skip
FOREIGN_VARIABLES = ("ACCELERATE_DEEPSPEED_", "ACCELERATE_FP8_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
PROCESSES = {"LOCAL_RANK", "WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"}


def is_known(variable: str) -> bool:
    return variable in KNOWN_VARIABLES or variable.startswith(FOREIGN_VARIABLES)


@pytest.fixture
def environment_of(tmp_path, monkeypatch):
    """The environment in which `accelerate launch` would start the training with a configuration."""

    def make(changes: dict) -> dict[str, str]:
        path, made = tmp_path / "accelerate.yaml", []
        path.write_text(yaml.safe_dump({**PLAIN, **changes}))
        for name, prepare in (
            ("simple_launcher", lambda arguments: prepare_simple_launcher_cmd_env(arguments)[1]),
            ("multi_gpu_launcher", prepare_multi_gpu_env),
            ("deepspeed_launcher", lambda arguments: prepare_deepspeed_cmd_env(arguments)[1]),
        ):
            monkeypatch.setattr(
                launch, name, lambda arguments, prepare=prepare: made.append(prepare(arguments))
            )
        argv = ["--config_file", str(path), "--num_cpu_threads_per_process", "1", "train_guidance.py"]
        launch.launch_command(launch.launch_command_parser().parse_args(argv))
        processes = {"WORLD_SIZE": "2"} if changes.get("distributed_type", "NO") != "NO" else {}
        return {**made[0], **processes}

    return make


# -- Every field and option of accelerate's configuration


def test_every_field_of_accelerates_configuration_has_its_place():
    fields = {field.name for kind in (ClusterConfig, SageMakerConfig) for field in dataclasses.fields(kind)}
    decided = {*TAKEN, *REFUSED, *SAID, *STARTS_PROCESSES, *SAGEMAKER, "compute_environment"}
    assert fields == decided, "decide what a new field means for a training, and add it to a table"


def test_every_option_of_accelerates_launcher_has_its_place():
    options = {action.dest for action in launch.launch_command_parser()._actions}
    fsdp = {option for option in options if option.startswith("fsdp_")}
    names = {option.upper().replace("TRANSFORMER_LAYER_CLS", "TRANSFORMER_CLS") for option in fsdp}
    assert names <= FSDP_VARIABLES
    fields = {field.name for field in dataclasses.fields(ClusterConfig)}
    rest = {option for option in options - fsdp if not option.startswith(FOREIGN_PREFIXES)}
    assert rest <= fields | LAUNCHER_OPTIONS | FOREIGN_OPTIONS | DYNAMO_OPTIONS


@pytest.mark.parametrize("field", TAKEN)
def test_a_field_becomes_a_setting(field, environment_of):
    example, becomes = TAKEN[field]
    changed, lines = start(environment_of(example))
    assert changed == becomes
    assert any(f"taken from accelerate: {name} {value}" in " ".join(lines) for name, value in becomes.items())


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_is_refused(field, environment_of):
    example, words = REFUSED[field]
    with pytest.raises(ConfigError, match=words) as raised:
        start(environment_of(example))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("field", SAID)
def test_a_field_is_obeyed_and_said(field, environment_of):
    example, words = SAID[field]
    changed, lines = start(environment_of(example))
    assert changed == {} and words in " ".join(lines)


@pytest.mark.parametrize("variable", from_accelerate.OBEYED)
def test_a_variable_is_obeyed_and_said(variable):
    assert start({variable: "1"}) == (
        {}, [f"taken from accelerate: {variable}=1: {from_accelerate.OBEYED[variable]}"]
    )  # fmt: skip


def test_a_device_is_obeyed_and_said():
    said = "taken from accelerate: ACCELERATE_TORCH_DEVICE=cuda:1: the device is this one"
    assert start({"ACCELERATE_TORCH_DEVICE": "cuda:1"}) == ({}, [said])


@pytest.mark.parametrize("field", STARTS_PROCESSES)
def test_a_field_ends_with_the_launcher(field, environment_of):
    example = STARTS_PROCESSES[field]
    kind = {name: example[name] for name in TWO_GPUS if name in example and "distributed_type" in example}
    plain, environment = environment_of(kind), environment_of(example)
    assert {name for name in {*plain, *environment} if plain.get(name) != environment.get(name)} <= MACHINE
    assert start(environment)[0] == {}


@pytest.mark.parametrize("name", ["fsdp", "multi_gpu", "multi_machine", "zero2"])
def test_shipped_configurations_ask_for_nothing_else(name, repository, environment_of):
    config = yaml.safe_load((repository / f"configs/accelerate/{name}.yaml").read_text())
    environment = environment_of({**config, "machine_rank": 1})
    assert start(environment) == ({}, [])
    assert all(is_known(variable) for variable in environment if variable.startswith(PREFIXES))


# -- Every variable that accelerate reads


def test_every_variable_in_accelerates_source_has_its_place():
    root, found = Path(accelerate.__file__).parent, set()
    for path in root.rglob("*.py"):
        if "test_utils" not in path.parts:
            found |= set(re.findall(r"[\"'](ACCELERATE_[A-Z0-9_]*[A-Z0-9])[\"']", path.read_text("utf-8")))
    assert {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"} <= found
    assert {variable for variable in found if not is_known(variable)} == set()


class Recorder(dict):
    """An environment that notes which variables accelerate's code asks for."""

    def note(self, name):
        if sys._getframe(2).f_globals.get("__name__", "").startswith("accelerate"):
            self.read.add(name)

    def get(self, name, default=None):
        self.note(name)
        return super().get(name, default)

    def __getitem__(self, name):
        self.note(name)
        return super().__getitem__(name)


def test_every_variable_that_accelerate_reads_has_its_place(monkeypatch):
    recorder = Recorder(os.environ)
    recorder.read = set()
    monkeypatch.setattr(os, "environ", recorder)
    accelerate.Accelerator(cpu=True)
    TorchDynamoPlugin()
    for version, policy in (("1", "SIZE_BASED_WRAP"), ("2", "TRANSFORMER_BASED_WRAP")):
        recorder.update(FSDP_VERSION=version, FSDP_AUTO_WRAP_POLICY=policy)
        FullyShardedDataParallelPlugin()
    assert {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "FSDP_VERSION"} <= recorder.read
    assert {name for name in recorder.read if not is_known(name)} <= PROCESSES
