"""Training, validation and sampling on CUDA tensors without storage, a step on meta: no two devices meet.

Nothing is computed, so no GPU is needed: FakeTensorMode goes through the code with shapes and devices alone.
"""

import contextlib
import ctypes
import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from caching.batch_encoding import move_batch
from evaluation.guidance_gaps import GapProtocol, encode_clip, measure
from models import ChampModel, FrozenEncoders, MusicGuidanceEncoder, create_guidance_encoders
from pipelines import champ_pipeline
from training import optimization
from training.champ import ChampTask
from training.objective import DiffusionObjective, make_noise_scheduler
from training.planning.stand_ins import storageless
from training.settings.fields import TrainingArguments
from training.stages import STAGES, freeze_for_stage
from training.step import StepFacts, Update, run_micro_batch

CUDA, META = torch.device("cuda", 0), torch.device("meta")
NUM_FRAMES, SIDE = 3, 64

_aten = torch.ops.aten
MOVES = (_aten._to_copy.default, _aten.copy_.default)
INDEXING = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default)


class OneDevice(TorchDispatchMode):
    """Raises where tensors of two devices meet, as a GPU does.

    FakeTensorMode lets convolutions and indices pass, meta kernels more.
    """

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # Scalars of the CPU go with anything, its indices index anything.
        if operation in INDEXING:
            tensors = tensors[:1] + [one for one in tensors[1:] if one.device.type != "cpu"]
        found = {one.device for one in tensors if one.ndim > 0 or one.device.type != "cpu"}
        if len(found) > 1 and operation not in MOVES:
            raise RuntimeError(f"two devices meet in {operation}: {sorted(map(str, found))}")
        return operation(*args, **kwargs)


@pytest.fixture
def cuda(monkeypatch):
    """CUDA tensors without storage inside the test, also in a PyTorch without CUDA.

    Such a PyTorch ends the process where a gradient is to flow to one: it has no guard for the device. It
    does have the one that it sets where there is no driver, a guard that does nothing; it sets it in the
    place of one that counts no devices, as that of the lazy tensors does.
    """
    guards = None
    if not torch.backends.cuda.is_built():
        try:
            library = ctypes.CDLL(str(next((Path(torch.__file__).parent / "lib").glob("libc10.*"))))
            guards = (ctypes.c_void_p * 18).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
        except (OSError, StopIteration, ValueError):
            pytest.skip("this build of PyTorch does not show its table of device guards")
        guards[1] = guards[17]  # DeviceType: CUDA 1, Lazy 17
        torch._C._ensureCUDADeviceGuardSet()
    # Autocast asks what the card can do.
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    yield CUDA
    if guards is not None:
        guards[1] = None


def make_batch() -> dict:
    return {
        "frames": torch.zeros(1, NUM_FRAMES, 3, SIDE, SIDE),
        "reference_image": torch.zeros(1, 3, SIDE, SIDE),
        "clip_image": torch.zeros(1, 3, 224, 224),
        "sample_id": ["a"],
        "position": [0],
        "guidance": {"music": torch.zeros(1, NUM_FRAMES, 35), "pose": torch.zeros(1, NUM_FRAMES, 134, 3)},
    }


class Run:
    """What a run has in its memory; `on` puts it on a device, where its tensors have no storage."""

    def __init__(self, base: Path, checkpointing: str = "none", vae: Path | None = None):
        widths = (8, 16, 32, 32)
        encoders = create_guidance_encoders(["music", "pose"], [35, 134], 32, block_out_channels=widths)
        self.model = ChampModel.from_pretrained_sd(base, encoders)
        self.model.enable_gradient_checkpointing(checkpointing)
        freeze_for_stage(self.model, STAGES["joint"])
        self.frozen = FrozenEncoders.from_pretrained(base, vae_model_name_or_path=vae)
        dropout = {"music": 0.1, "pose": 0.1}
        self.objective = DiffusionObjective(make_noise_scheduler(), guidance_dropout=dropout)
        self.arguments = TrainingArguments()
        self.task = ChampTask(self.arguments, None, self.model, self.frozen, self.objective)

    @contextlib.contextmanager
    def on(self, device: torch.device):
        is_fake = device != META
        with (
            FakeTensorMode(allow_non_fake_inputs=True) if is_fake else contextlib.nullcontext(),
            storageless(self.model, device, lambda tensor: tensor.dtype),
            storageless(self.frozen, device, lambda tensor: tensor.dtype),
            OneDevice(),
        ):
            yield

    def accumulate(self, model):  # this and the next, of accelerate, are all that a step needs
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def train_forward(run: Run, device: torch.device) -> Tensor:
    with run.on(device):
        return run.task.loss(run.model, move_batch(make_batch(), device)).loss


def measure_gaps(run: Run, device: torch.device) -> dict[str, float]:
    with run.on(device), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "item", lambda tensor: 1.0)  # a tensor without storage has no number to read
        patch.setattr(Tensor, "tolist", lambda tensor: [1.0] * len(tensor))
        clips = [encode_clip(run.frozen, make_batch() | {"sample_id": [name]}, device) for name in "ab"]
        return measure(run.model, run.objective, clips, GapProtocol(timesteps=(250, 750)))


def sample(run: Run, device: torch.device) -> Tensor:
    pipeline = champ_pipeline.ChampPipeline.from_parts(run.model, run.frozen, make_noise_scheduler())
    scheduler, batch = pipeline.scheduler, make_batch()
    step = scheduler.step
    with run.on(device), pytest.MonkeyPatch.context() as patch:
        # Neither CLIP's image processing nor the scheduler's choice of a step can read a number.
        patch.setattr(champ_pipeline, "clip_image_transform", lambda image: torch.zeros(3, 224, 224))
        patch.setattr(scheduler, "step", lambda prediction, _, latents: step(prediction, 500, latents))
        return pipeline(
            batch["reference_image"], batch["guidance"], num_inference_steps=1, context_frames=2,
            context_overlap=1, generator=torch.Generator(), output_type="pt",
        ).frames  # fmt: skip


def train_step(run: Run, device: torch.device) -> tuple[Update, dict[str, list[Tensor]]]:
    """Return the update, and all that a step leaves, by kind."""
    with run.on(device), pytest.MonkeyPatch.context() as patch:
        # The fused update takes tensors of meta, but PyTorch does not list it.
        adam = importlib.import_module("torch.optim.adam")
        patch.setattr(adam, "_device_dtype_check_for_fused", lambda *_, **__: None)
        optimizer = optimization.make_optimizer(run.task.optimizer_groups(1e-4, 0.1), run.arguments)
        ema = optimization.make_ema(run.model, 0.9999)
        update = Update(run.model, run.task.trained_parts(), optimizer, ema)
        micro_batch = run_micro_batch(run, run.task, run.model, move_batch(make_batch(), device))
        norms = optimization.gradient_norms(update.parts)
        update(StepFacts(loss=1.0, grad_norms={"all": 2.0}), run.arguments)
    moments = [one for state in optimizer.state.values() for name, one in state.items() if name != "step"]
    left = {"loss": [micro_batch.loss], "norms": [*norms.values()], "moments": moments}
    return update, left | {"averages": ema.shadow_params}


# OneDevice raises where two devices meet: the last test plants that.


@pytest.mark.parametrize(("checkpointing", "is_mixed"), [("none", False), ("selective", True), ("all", True)])
def test_a_forward_pass_stays_on_the_gpu(tiny_base, tiny_kl, cuda, checkpointing, is_mixed):
    with torch.autocast("cuda", torch.bfloat16, enabled=is_mixed):
        loss = train_forward(Run(tiny_base, checkpointing, vae=tiny_kl), cuda)
    assert loss.device == cuda and loss.requires_grad


def test_validation_and_sampling_stay_on_the_gpu(tiny_base, cuda):
    scalars = measure_gaps(Run(tiny_base), cuda)
    assert {"val_loss", "guidance_gap/music", "guidance_gap/reference"} <= set(scalars)
    frames = sample(Run(tiny_base), cuda)
    assert frames.device == cuda and frames.shape == (1, NUM_FRAMES, 3, SIDE, SIDE)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "all"])
def test_a_whole_step_stays_on_its_device(tiny_base, checkpointing):
    update, left = train_step(Run(tiny_base, checkpointing), META)
    assert {tensor.device for tensors in left.values() for tensor in tensors} == {META}
    assert len(left["norms"]) == len(update.parts)
    assert len(left["moments"]) == 2 * len(update.parameters)


FORGOTTEN = {  # tensors of an encoder that did not move with it
    "sum": lambda condition: condition + torch.ones(35),
    "convolution": lambda condition: F.conv1d(condition, torch.ones(NUM_FRAMES, NUM_FRAMES, 1)),
    "index": lambda condition: condition + torch.ones(9)[torch.zeros(35, device=condition.device).long()],
}


@pytest.mark.parametrize(
    ("act", "kind"),
    [(act, "sum") for act in (train_forward, measure_gaps, sample, train_step)]
    + [(train_forward, "convolution"), (train_forward, "index"), (train_step, "convolution")],
)
def test_a_forgotten_tensor_is_found(tiny_base, cuda, monkeypatch, act, kind):
    forward = MusicGuidanceEncoder.forward
    monkeypatch.setattr(
        MusicGuidanceEncoder, "forward", lambda self, condition: forward(self, FORGOTTEN[kind](condition))
    )
    with pytest.raises(RuntimeError, match="two devices"):
        act(Run(tiny_base), META if act is train_step else cuda)
