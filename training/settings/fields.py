"""Every setting of a training run: name, default, help and choices, in one place.

The settings come in groups, one dataclass per group; a function takes the group that it needs. Flags and YAML
are flat: `TrainingArguments` is the sum of the groups, and `parsing.py` makes both from it. Another trainer
has a sum of its own.
"""

from dataclasses import MISSING, Field, dataclass, field, fields

from .sources import Sources

MAX_MOTION_FRAMES = 32  # positions of the motion modules (CHAMP and AnimateDiff): there are no more


def flag(default, help, *, choices=None, aliases=(), switch=None):
    """Return a dataclass field that knows how to be a command-line flag.

    `switch` (value if on, value if off): the flag without a value or true in YAML, --no-NAME or false.
    """
    metadata = {"help": help, "choices": choices, "aliases": tuple(aliases), "switch": switch}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class ModelSettings:
    """What the model is made of, and what it starts from."""

    pretrained_model_name_or_path: str = flag(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "Stable Diffusion 1.5 to start from: a folder in diffusers' layout, one checkpoint file, or a hub id",
    )
    revision: str | None = flag(None, "hub revision (branch, tag or commit) of the pretrained model")
    variant: str | None = flag(None, "variant of the pretrained weight files, for example fp16")
    vae_model_name_or_path: str | None = flag(
        None,
        "VAE to use instead of the pretrained model's, for example stabilityai/sd-vae-ft-mse, or its file",
    )
    image_encoder_name_or_path: str | None = flag(
        None, "CLIP image encoder to use instead of the pretrained model's image_encoder/"
    )
    motion_module_path: str | None = flag(None, "AnimateDiff or CHAMP motion module weights to start from")
    champ_checkpoint_dir: str | None = flag(
        None, "CHAMP weights to start from: a folder of the official .pth files, or the final/ of a run"
    )
    training_stage: str = flag(
        "joint",
        "joint: everything; image: no motion modules, single frames; motion: motion modules only",
        choices=("joint", "image", "motion"),
    )


@dataclass
class AdapterSettings:
    """LoRA: low-rank adapters train instead of the weights that they sit on."""

    lora_rank: int | None = flag(
        None,
        "train adapters (LoRA) of this rank on top of the weights that the run starts from, which stay as "
        "they are; final/ then holds the adapters alone",
    )
    lora_alpha: float | None = flag(
        None, "strength of the adapters: what they add is multiplied by alpha / rank; none: by 1"
    )
    lora_dropout: float = flag(0.0, "share of an adapter's inputs that are zeroed in training")
    lora_parts: list[str] = flag(
        [],
        "unet, reference_unet, motion: these get adapters; guidance_encoders: these train whole. Without it "
        "adapters are on all that the stage trains, and the guidance encoders stay as they are",
    )


@dataclass
class GuidanceSettings:
    """The guidance types and their encoders."""

    guidance_types: list[str] = flag(["music", "pose"], "guidance types, each a folder of the data")
    guidance_input_channels: list[int] = flag(
        [1, 134], "one number per type: music features, pose key points, or image channels"
    )
    guidance_embedding_channels: int = flag(1280, "width of the guidance encoders' output")
    guidance_block_out_channels: list[int] = flag(
        [16, 32, 96, 256], "widths of the spatial guidance encoders' blocks"
    )
    guidance_modules: list[str] = flag(
        [], "your Python modules (names or .py files) that register guidance encoders of your own"
    )
    loss: str | None = flag(
        None, "MODULE:FUNCTION of your own loss(model_pred, target, guidance_condition), added to the loss"
    )


@dataclass
class DataSettings:
    """The data folders, and how clips are cut from them."""

    train_data_dir: str = flag(
        "./data",
        "folder with videos/, reference_images/ and a folder per guidance type; or shards that "
        "pack_guidance.py made of one: their folder, or its address in an object store, as s3://BUCKET/SHARDS",
    )
    validation_data_dir: str | None = flag(
        None,
        "like --train_data_dir, for validation. Without it one video in twenty (at most 8) is held out of "
        "the training data; with fewer than 10 videos validation uses training clips, and says so",
    )
    train_data_format: str = flag(
        "video",
        "video: clips; image: single frames (implied by --training_stage image)",
        choices=("video", "image"),
    )
    shard_cache_dir: str | None = flag(
        None,
        "folder for copies of shards from an address or a slow drive, which runs may share; none: "
        "shard_cache in --output_dir for addresses, and no copies of a folder's",
    )
    shard_cache_gb: float = flag(64.0, "GiB that all shards may take in --shard_cache_dir")
    resolution: list[int] = flag([512], "side of the square frames in pixels, or height and width")
    aspect_buckets: list[str] = flag(
        ["none"],
        "train upright, square and wide videos together: each at the size of the nearest aspect ratio, all "
        "clips of a step at one size. auto (also without a value): sizes of --resolution's area in steps of "
        "64; or sizes of your own as HEIGHTxWIDTH, for example 640x384 512x512 384x640",
        aliases=["aspect_ratio_buckets"],
        switch=(["auto"], ["none"]),
    )
    fit: str = flag(
        "auto",
        "crop: fill the frame and cut what is over; pad: keep the whole frame, with black bars; auto: pad "
        "videos whose aspect ratio is more than a third off, crop the others",
        choices=("auto", "crop", "pad"),
    )
    center_crop: bool = flag(
        False, "crop about the person, the same in all clips of a video, instead of at random"
    )
    random_flip: bool = flag(False, "flip half of the clips, with left and right key points exchanged")
    sequence_length: int = flag(16, f"frames in a clip, at most {MAX_MOTION_FRAMES}")
    frame_stride: int = flag(1, "video frames from one clip frame to the next")
    music_feature_fps: float | None = flag(
        None, "rate of the music feature rows; without it row k belongs to video frame k"
    )
    cache_latents: bool = flag(
        False,
        "encode all frames of the training videos once, into --cache_dir; training then neither decodes nor "
        "encodes. Crops as --center_crop does",
    )
    cache_features: bool = flag(
        False,
        "motion stage, with --cache_latents: keep there too what the frozen guidance encoders and the "
        "reference UNet give, and run neither: 2.5 MiB a frame and spatial type at 512 in bf16",
    )
    cache_dir: str | None = flag(
        None,
        "folder of the latent cache, which runs may share; none: latent_cache in --output_dir. (The hub has "
        "a cache of its own, set by HF_HOME in the environment.)",
    )
    skip_invalid: bool = flag(False, "leave faulty samples out (counted and listed) instead of stopping")
    check_data: bool = flag(False, "report on the data and stop: exit code 0 if clean, 2 if not")
    num_workers: int = flag(4, "data loader processes", aliases=["dataloader_num_workers"])


@dataclass
class ObjectiveSettings:
    """What is predicted, and how the loss weighs it."""

    prediction_type: str = flag(
        "v_prediction",
        "what the model predicts; the noise schedule ends at zero signal except with epsilon, which cannot",
        choices=("v_prediction", "epsilon", "sample"),
    )
    snr_gamma: float | None = flag(
        5.0, "cap of the loss weight over the signal-to-noise ratio; none: no weight"
    )
    noise_offset: float = flag(0.05, "strength of the noise that is constant over a clip")
    timestep_bias_strategy: str = flag(
        "none",
        "timesteps that are drawn more often than the others: later (much noise: light, colours, layout) or "
        "earlier (little noise: detail)",
        choices=("none", "earlier", "later"),
    )
    timestep_bias_multiplier: float = flag(1.0, "how many times as often these timesteps are drawn")
    timestep_bias_portion: float = flag(0.25, "share of all timesteps that --timestep_bias_strategy means")
    region_weights: list[str] = flag(
        [],
        "REGION=WEIGHT of hands and face: how many times the error there counts, wherever the pose's key "
        "points are confident; elsewhere 1. Validation tells the loss inside and outside",
    )
    reference_dropout: float = flag(
        0.1, "share of samples trained without their reference (for guidance scale)"
    )
    guidance_dropout: list[float] = flag(
        [0.1], "share of samples trained without a guidance type; one number, or one per type"
    )


@dataclass
class OptimizationSettings:
    """Seed, batch, learning rate, AdamW and averaged weights."""

    seed: int = flag(42, "seed of everything random")
    train_batch_size: int = flag(1, "clips per process and micro-batch")
    gradient_accumulation_steps: int = flag(1, "micro-batches per optimizer step")
    num_train_epochs: int = flag(100, "passes over the data")
    max_train_steps: int | None = flag(None, "optimizer steps; overrides --num_train_epochs")
    learning_rate: float = flag(1e-4, "learning rate of new weights")
    pretrained_lr_scale: float = flag(0.1, "factor on the learning rate of weights that came pretrained")
    scale_lr: bool = flag(False, "multiply the learning rate by processes x batch size x accumulation steps")
    lr_scheduler: str = flag(
        "constant",
        "schedule of the learning rate, counted in optimizer steps; all of them warm up",
        choices=("constant", "linear", "cosine", "cosine_with_restarts", "polynomial"),
    )
    lr_warmup_steps: int = flag(500, "optimizer steps of linear warm-up")
    lr_num_cycles: int = flag(1, "restarts of cosine_with_restarts")
    lr_power: float = flag(1.0, "power of polynomial")
    adam_beta1: float = flag(0.9, "decay of Adam's first moment")
    adam_beta2: float = flag(0.999, "decay of Adam's second moment")
    adam_weight_decay: float = flag(1e-2, "weight decay")
    adam_epsilon: float = flag(1e-8, "Adam's epsilon")
    use_8bit_adam: bool = flag(False, "8-bit Adam of bitsandbytes: a quarter of the optimizer memory")
    max_grad_norm: float = flag(1.0, "gradients are clipped to this norm")
    set_grads_to_none: bool = flag(True, "free gradients after a step instead of zeroing them")
    use_ema: bool = flag(False, "keep an exponential moving average of the weights; validate and export it")
    ema_decay: float = flag(0.9999, "decay of that average")


@dataclass
class ExecutionSettings:
    """Speed and memory: what changes the cost of a step, not its meaning."""

    mixed_precision: str = flag(
        "no", "autocast precision; what is trained or saved stays float32", choices=("no", "fp16", "bf16")
    )
    gradient_checkpointing: str = flag(
        "selective",
        "what the backward pass recomputes instead of keeping it. selective: all that is cheap (norms, "
        "activations, copies, the feed-forwards' wide products): far less memory, up to a tenth slower; "
        "all: whole blocks: least memory, a third slower; none: nothing. Without a value: all",
        choices=("none", "selective", "all"),
        switch=("all", "none"),
    )
    compile: bool = flag(
        False,
        "compile the UNets' blocks (torch.compile) in the first step, which takes minutes; for GPUs, on "
        "a CPU it brings nothing",
    )
    enable_xformers_memory_efficient_attention: bool = flag(
        False, "attention by xformers instead of PyTorch", aliases=["use_xformers"]
    )
    allow_tf32: bool = flag(False, "TF32 matrix products on NVIDIA GPUs: faster, slightly less exact")
    local_rank: int = flag(
        -1, "process number on this machine, set by old launchers; the environment beats it"
    )


@dataclass
class OutputSettings:
    """What a run writes, and when."""

    output_dir: str = flag("./champ_guidance_output", "folder of checkpoints, samples and the final model")
    logging_dir: str = flag(
        "logs", "folder of the TensorBoard logs; a run logs to a folder named as its output_dir"
    )
    report_to: str = flag("tensorboard", "where scalars and images go", choices=("tensorboard", "wandb"))
    checkpointing_steps: int = flag(500, "optimizer steps between checkpoints", aliases=["save_steps"])
    checkpoints_total_limit: int | None = flag(None, "checkpoints to keep; older ones are removed")
    keep_best: str | None = flag(
        None,
        "keep the checkpoint that is best by val_loss, or by a metric as in --validation_metrics, as "
        "checkpoint-best, one more than --checkpoints_total_limit",
    )
    resume_from_checkpoint: str | None = flag(
        None, "a checkpoint folder, or latest; latest with nothing to resume starts afresh"
    )
    validation_steps: int = flag(100, "optimizer steps between validations")
    num_validation_clips: int = flag(4, "fixed clips that the validation measures")
    validation_metrics: list[str] = flag(
        [],
        "metrics of evaluate_guidance.py to log at every validation: psnr, ssim, l1, dtssd, ...; each of the "
        "--num_validation_clips is then sampled, instead of one",
    )
    num_inference_steps: int = flag(20, "sampling steps of the validation video")
    guidance_scale: float = flag(3.5, "classifier-free guidance scale of the validation video")
    push_to_hub: bool = flag(
        False,
        "upload the final model to a repository of the hub, made private where it is missing. Log in before, "
        "with hf auth login",
    )
    hub_model_id: str | None = flag(
        None, "repository of --push_to_hub, NAME or OWNER/NAME; none: the name of --output_dir"
    )
    dry_run: bool = flag(False, "print the configuration, sizes and estimates of this run; train nothing")


@dataclass
class RunSettings(OutputSettings, ExecutionSettings, OptimizationSettings):
    """What the loop and the machinery around it read, whatever is trained."""

    # No fields: two runs with the same values have the same settings.
    sources = Sources()
    program, description = "train_guidance.py", ""
    not_offered = frozenset()  # settings that mean nothing to a trainer: neither flags nor YAML keys of it

    def offered(self) -> dict:
        """Return {setting: value} of those that are flags and YAML keys."""
        return {name: getattr(self, name) for name in flags_of(type(self))}


@dataclass
class ClipSettings(DataSettings, GuidanceSettings):
    """What decides which clips are read, and what is in them."""


@dataclass
class TrainingArguments(RunSettings, ObjectiveSettings, ClipSettings, AdapterSettings, ModelSettings):
    """All settings of train_guidance.py. (A dataclass takes the last base's fields first.)"""

    description = "Train CHAMP: a person's image and guidance (pose, music, ...) to a video."

    @property
    def trains_on_images(self) -> bool:
        return self.training_stage == "image" or self.train_data_format == "image"


def flags_of(kind: type[RunSettings]) -> dict[str, Field]:
    """Return {name: field} of the settings that a trainer offers as flags and YAML keys."""
    return {entry.name: entry for entry in fields(kind) if entry.name not in kind.not_offered}


def aliases_of(kind: type[RunSettings]) -> dict[str, str]:
    """Return {other name: name} of those settings."""
    return {alias: entry.name for entry in flags_of(kind).values() for alias in entry.metadata["aliases"]}


FLAGS, ALIASES = flags_of(TrainingArguments), aliases_of(TrainingArguments)


def default_of(name: str, kind: type[RunSettings] = TrainingArguments):
    entry = flags_of(kind)[name]
    return entry.default if entry.default is not MISSING else entry.default_factory()


def shown(value) -> str:
    if isinstance(value, list):
        return " ".join(str(item) for item in value) or "none"
    return "none" if value is None else str(value)
