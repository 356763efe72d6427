"""What accelerate's configuration and environment ask for: taken over as settings, refused, or reported.

`accelerate launch` hands its configuration on in environment variables, which `Accelerator` reads wherever an
argument is left out. None is left out here: the variable becomes a setting, below flags and YAML. Those of
FSDP are read in `training/execution/sharding.py`.
"""

from collections.abc import Collection, Mapping

import torch

from system.errors import ConfigError

from .fields import FLAGS, default_of

TRUE, FALSE = ("1", "true", "yes", "y", "t", "on"), ("0", "false", "no", "n", "f", "off")
USE_CPU, DEVICE = "ACCELERATE_USE_CPU", "ACCELERATE_TORCH_DEVICE"
OBEYED = {
    USE_CPU: "the CPU is used, GPUs are not",
    "ACCELERATE_DEBUG_MODE": "accelerate checks what the processes exchange",
    "ACCELERATE_CPU_AFFINITY": "each process stays on the cores beside its GPU",
}
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": (
        "DEEPSPEED, which this trainer cannot run: use one of configs/accelerate/ (zero2.yaml and fsdp.yaml "
        "shard what DeepSpeed's ZeRO does)"
    ),
    "ACCELERATE_USE_MEGATRON_LM": (
        "MEGATRON_LM, which this trainer cannot run: use one of configs/accelerate/ (fsdp.yaml shards models)"
    ),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        "parallelism_config, which this trainer cannot run: leave it out (configs/accelerate/fsdp.yaml "
        "shards the model over all processes)"
    ),
    "ACCELERATE_DOWNCAST_BF16": (
        "downcast_bf16, which is for TPUs: unset ACCELERATE_DOWNCAST_BF16 and give --mixed_precision bf16"
    ),
}
SAGEMAKER = "ACCELERATE_SAGEMAKER_DISTRIBUTED_TYPE"


def is_on(value: str | None) -> bool:
    return (value or "").lower() in TRUE


def take_settings(
    environ: Mapping[str, str], decided: Collection[str]
) -> tuple[dict[str, object], dict[str, str]]:
    """Return {setting: value} and {setting: the variable that says so} of what is not `decided` elsewhere.

    A default is left out: the launcher sets its variables where nobody asked, too. Raises ConfigError.
    """
    values, origins = {}, {}
    for variable, (name, read) in TAKEN.items():
        text = environ.get(variable)
        if not text or name in decided:
            continue
        try:
            value = read(environ, text)
        except ValueError as fault:
            raise ConfigError(f"{fault}, which beats what accelerate's configuration says") from None
        if value != default_of(name):
            values[name], origins[name] = value, f"{variable}={text}"
    return values, origins


def beaten_lines(environ: Mapping[str, str], decided: Mapping[str, tuple[object, str]]) -> list[str]:
    """Return a line for each variable of accelerate's that does not count, as `decided` has another value.

    `decided` is {setting: (its value, who decided)}.
    """
    lines = []
    for variable, (name, read) in TAKEN.items():
        text = environ.get(variable)
        if not text or name not in decided:
            continue
        value, decider = decided[name]
        asked, said = text, f"{variable}={text}"
        try:
            asked = read(environ, text)
        except ValueError as fault:
            said = str(fault).split(": ")[0]  # the variable at fault may be another
        if asked != value and text.lower() != "no":  # which the launcher sets where nobody asked
            lines.append(f"not taken from accelerate: {said}; {decider} says {name} {value}")
    return lines


def refuse(environ: Mapping[str, str]) -> None:
    """Raise ConfigError where accelerate's configuration asks for what this trainer cannot do."""
    for variable, what in REFUSED.items():
        if is_on(environ.get(variable)):
            raise ConfigError(f"the accelerate configuration asks for {what}")
    if is_on(environ.get("ACCELERATE_USE_SAGEMAKER")) and environ.get(SAGEMAKER, "NO") != "NO":
        raise ConfigError(
            f"the accelerate configuration asks for SageMaker's {environ[SAGEMAKER]}, which this trainer "
            "cannot run: set distributed_type: 'NO', one instance with one GPU"
        )
    _check_device(environ.get(DEVICE), int(environ.get("WORLD_SIZE", "1")))
    for variable in (*OBEYED, "FORK_LAUNCHED"):
        text = environ.get(variable, "false")
        if text.lower() not in TRUE + FALSE:
            raise ConfigError(f"{variable}={text}: write true or false, or unset it")


def _check_device(name: str | None, num_processes: int) -> None:
    """Raise ConfigError where a device named for the training is none, or is one for several processes."""
    if not name:
        return
    if num_processes > 1:
        raise ConfigError(f"{DEVICE}={name} is one device for {num_processes} processes: unset it")
    try:
        torch.device(name)
    except RuntimeError:
        raise ConfigError(f"{DEVICE}={name}: write cuda:1 or cpu, for example, or unset it") from None


def obeyed_lines(environ: Mapping[str, str]) -> list[str]:
    """Return a line for each variable that no setting stands for, and that accelerate obeys."""
    asked = {variable: what for variable, what in OBEYED.items() if is_on(environ.get(variable))}
    if environ.get(DEVICE):
        asked[DEVICE] = "the device is this one"
    return [
        f"taken from accelerate: {variable}={environ[variable]}: {what}" for variable, what in asked.items()
    ]


def asks_for_cpu(environ: Mapping[str, str]) -> bool:
    return is_on(environ.get(USE_CPU)) or environ.get(DEVICE, "").startswith("cpu")


def _precision(environ: Mapping[str, str], text: str) -> str:
    choices = FLAGS["mixed_precision"].metadata["choices"]
    if text.lower() not in choices:
        raise ValueError(
            f"ACCELERATE_MIXED_PRECISION={text}: this trainer knows {', '.join(choices)}; give "
            "--mixed_precision bf16"
        )
    return text.lower()


def _accumulation(environ: Mapping[str, str], text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={text}: must be a whole number, at least 1; give "
            "--gradient_accumulation_steps"
        )
    return int(text)


def _compiles(environ: Mapping[str, str], text: str) -> bool:
    """Return whether torch.compile is asked for, in the way in which --compile does it."""
    if text.upper() == "NO":
        return False
    ours = {
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_DYNAMO_MODE": "DEFAULT",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "FALSE",
    }
    for variable, only in ours.items():
        asked = environ.get(variable, only)
        if asked.upper() != only:
            raise ValueError(
                f"{variable}={asked}: this trainer compiles with {only.lower()} only; give --compile or "
                "--no-compile"
            )
    return True


TAKEN = {
    "ACCELERATE_MIXED_PRECISION": ("mixed_precision", _precision),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient_accumulation_steps", _accumulation),
    "ACCELERATE_DYNAMO_BACKEND": ("compile", _compiles),
}
