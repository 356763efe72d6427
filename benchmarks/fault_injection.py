"""Kill a training again and again, inside its saves too, and see that it ends as one that was left alone.

    python -m benchmarks.fault_injection --base DIR --data DIR --work_dir DIR

A child process trains by the ordinary command line. SIGKILL comes at any moment, when the folder of a save
appears, or just before one of the file operations of a save. All bits of all weights must be the same.
"""

import system.waiting  # before torch is loaded

import argparse
import importlib
import itertools
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

RESUME = ("--resume_from_checkpoint", "latest")
FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
SIZES = {
    "guidance_types": "music pose", "guidance_input_channels": "35 134", "guidance_embedding_channels": 32,
    "guidance_block_out_channels": "8 16 32 32", "resolution": 64, "sequence_length": 4, "num_workers": 0,
    "lr_warmup_steps": 2, "lr_scheduler": "cosine", "learning_rate": 1e-3, "validation_steps": 1000,
    "num_validation_clips": 1, "num_inference_steps": 1, "guidance_scale": 1.0,
    "max_train_steps": 8, "checkpointing_steps": 2, "checkpoints_total_limit": 2,
}  # fmt: skip
CASES = {  # {name: (number of processes, flags)}
    "joint": (1, {}),
    "EMA and accumulation": (1, {"use_ema": True, "gradient_accumulation_steps": 2, "train_batch_size": 2}),
    "image stage": (1, {"training_stage": "image", "use_ema": True}),
    "motion stage": (1, {"training_stage": "motion", "champ_checkpoint_dir": "{image}"}),
    "data workers, bf16": (1, {"num_workers": 2, "mixed_precision": "bf16", "gradient_checkpointing": "all"}),
    "two processes": (2, {}),
    "two processes, EMA and accumulation": (2, {"use_ema": True, "gradient_accumulation_steps": 2}),
    "latent cache": (1, {"cache_latents": True, "use_ema": True, "num_workers": 1}),
    "two processes, sharded": (2, {"use_ema": True, "gradient_accumulation_steps": 2}),
    "motion stage, cached features": (
        1, {"training_stage": "motion", "champ_checkpoint_dir": "{image}", "cache_latents": True,
            "cache_features": True},
    ),
    "dances": (1, {"use_ema": True, "gradient_accumulation_steps": 2}),
    "dances, two processes": (2, {"use_ema": True, "num_workers": 1}),
}  # fmt: skip
DANCES = "train_music_to_pose"  # the program of the cases of this name
DANCE_SIZES = {
    "hidden_size": 32, "num_layers": 2, "num_heads": 2, "train_batch_size": 4, "num_workers": 0,
    "sequence_length": 8, "lr_warmup_steps": 2, "lr_scheduler": "cosine", "learning_rate": 1e-3,
    "validation_steps": 1000, "num_validation_clips": 1, "num_inference_steps": 1, "max_train_steps": 8,
    "checkpointing_steps": 2, "checkpoints_total_limit": 2,
}  # fmt: skip
ENVIRONMENTS = {"two processes, sharded": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}}


@dataclass(frozen=True)
class Kill:
    """When a run is killed: at any time, or in a save, some time after its folder appears or by operation."""

    kind: str  # "time", "folder" or "operation"
    seconds: float = 0.0
    operation: int = 0  # before this file operation of its saves, counted from 1


def endless_kills(seed: int, run_seconds: float) -> Iterator[Kill]:
    """Yield the kills of a seed: a third at any time (a resumed run is shorter), the others inside a save."""
    numbers = random.Random(seed)
    for kind in itertools.cycle(("operation", "folder", "time")):
        seconds = numbers.uniform(0, 0.6 * run_seconds if kind == "time" else 0.01)
        yield Kill(kind, seconds, numbers.randint(1, 60))


def train(
    argv: list[str], *, log_path: Path, num_processes: int = 1, kill: Kill | None = None,
    environment: dict[str, str] | None = None, program: str = "train_guidance",
) -> int:  # fmt: skip
    """Run the training, killed as `kill` says; return the exit code of its first process (-9: killed).

    As a launcher does, the other processes are killed when one has ended badly.
    """
    output_dir = Path(argv[argv.index("--output_dir") + 1])
    context = multiprocessing.get_context("forkserver")  # imports once, then forks for each run
    context.set_forkserver_preload(["train_guidance", "tensorboard.summary"])
    port, victim = _free_port(), kill.operation % num_processes if kill else 0
    processes = []
    for rank in range(num_processes):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_processes, "MASTER_PORT": port}
        world = {**world, "MASTER_ADDR": "127.0.0.1"} if num_processes > 1 else {}
        world |= environment or {}
        own_kill = kill if kill and kill.kind == "operation" and rank == 0 else None  # rank 0 writes
        processes.append(context.Process(target=_child, args=(argv, world, own_kill, log_path, program)))
        processes[-1].start()
    started, folder_seen = time.monotonic(), None
    while any(process.exitcode is None for process in processes):
        time.sleep(0.001)
        now = time.monotonic()
        if kill and kill.kind == "folder" and folder_seen is None and list(output_dir.glob("*.tmp")):
            folder_seen = now
        since = {"time": started, "folder": folder_seen}.get(kill.kind) if kill else None
        if since is not None and now - since >= kill.seconds:
            processes[victim].kill()
        if any(process.exitcode not in (None, 0) for process in processes):
            for process in processes:
                process.kill()
    codes = [process.exitcode for process in processes]
    return -signal.SIGKILL if -signal.SIGKILL in codes else max(codes)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _child(argv: list[str], world: dict, kill: Kill | None, log_path: Path, program: str) -> None:
    os.environ.update({name: str(value) for name, value in world.items()})
    torch.set_num_threads(1)
    with open(log_path, "ab") as log:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
    if kill is not None:
        _kill_at_operation(kill.operation, argv[argv.index("--output_dir") + 1])
    sys.exit(importlib.import_module(program).main(argv))


def _kill_at_operation(number: int, output_dir: str) -> None:
    """Kill this process before operation `number` on folders that are being written or removed."""
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in FILE_EVENTS:
            return
        paths = [str(one) for one in arguments[:2]]
        if any(path.startswith(output_dir) and (".tmp" in path or ".replaced" in path) for path in paths):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def weights_of(output_dir: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of final/ and of the averages and weights of the last checkpoint."""
    checkpoints = sorted(output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    files = [*(output_dir / "final").rglob("*.safetensors"), *checkpoints[-1].glob("*.safetensors")]
    return {
        f"{path.relative_to(output_dir)}:{key}": value
        for path in sorted(files)
        for key, value in load_file(path).items()
    }


@dataclass
class Result:
    tried: int  # kills, each of a run that was not done
    inside_save: int  # of them those that left a half-written folder
    same_bits: bool
    kinds: Counter


def kill_and_resume(
    flags: list[str], work_dir: Path, *, num_kills: int, seed: int, num_processes: int = 1,
    environment: dict[str, str] | None = None, program: str = "train_guidance",
) -> Result:  # fmt: skip
    """Return the Result of a run that is killed `num_kills` times, against one that is left alone."""
    log_path = work_dir / "console.txt"
    how = {"log_path": log_path, "num_processes": num_processes, "environment": environment}
    how["program"] = program
    outputs = [work_dir / name for name in ("whole", "killed")]
    whole, killed = (
        [*flags, "--output_dir", str(output), "--logging_dir", str(work_dir / "logs"), *RESUME]
        for output in outputs
    )
    started = time.monotonic()
    assert train(whole, **how) == 0, log_path.read_text(encoding="utf-8")[-3000:]
    result = Result(0, 0, False, Counter())
    kills = endless_kills(seed, time.monotonic() - started)
    while result.tried < num_kills:
        kill = next(kills)
        code = train(killed, **how, kill=kill)
        if code == 0:  # done before the kill came: from the start again
            assert _same(*outputs)
            shutil.rmtree(outputs[1])
            continue
        assert code == -signal.SIGKILL, (code, log_path.read_text(encoding="utf-8")[-3000:])
        result.tried += 1
        result.kinds[kill.kind] += 1
        result.inside_save += bool([*outputs[1].glob("*.tmp"), *outputs[1].glob("*.replaced")])
    assert train(killed, **how) == 0, log_path.read_text(encoding="utf-8")[-3000:]
    result.same_bits = _same(*outputs)
    return result


def _same(one_dir: Path, other_dir: Path) -> bool:
    one, other = weights_of(one_dir), weights_of(other_dir)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def flag_words(settings: dict) -> list[str]:
    words = []
    for name, value in settings.items():
        words += [f"--{name}"] if value is True else [f"--{name}", *str(value).split()]
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--base", required=True, help="a small Stable Diffusion folder")
    parser.add_argument("--data", required=True, help="a small data folder of 64x64 videos")
    parser.add_argument("--work_dir", type=Path, required=True, help="where the runs write; must be empty")
    parser.add_argument("--num_kills", type=int, default=10, help="kills of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", nargs="+", choices=CASES, metavar="NAME", help="only these cases")
    arguments = parser.parse_args()
    base = {"pretrained_model_name_or_path": arguments.base, **SIZES}
    image = arguments.work_dir / "image stage" / "whole" / "final"
    for place, (name, (num_processes, more)) in enumerate(CASES.items()):
        if arguments.case and name not in arguments.case:
            continue
        work_dir = arguments.work_dir / name
        work_dir.mkdir(parents=True)
        is_dance = name.startswith("dances")
        sizes = DANCE_SIZES if is_dance else base
        flags = flag_words({"train_data_dir": arguments.data, **sizes, **more})
        flags = [word.replace("{image}", str(image)) for word in flags]
        result = kill_and_resume(
            flags, work_dir, num_kills=arguments.num_kills, seed=arguments.seed + place,
            num_processes=num_processes, environment=ENVIRONMENTS.get(name),
            program=DANCES if is_dance else "train_guidance",
        )  # fmt: skip
        print(f"{name}: {result}", flush=True)


if __name__ == "__main__":
    main()
