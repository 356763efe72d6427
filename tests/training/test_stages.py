"""What trains in which stage, at which learning rate, and that nothing else keeps a gradient."""

import pytest
import torch

from system.errors import ConfigError
from train_guidance import make_model, make_objective
from training import champ
from training.objective import DiffusionObjective, make_noise_scheduler
from training.optimization import LearningRateSchedule, clip_gradients, gradient_norms, make_optimizer
from training.settings.fields import TrainingArguments
from training.stages import PARTS, STAGES, optimizer_groups, parameters_by_part, trained_parts

SHAPES = {"music": (35,), "pose": (134, 3)}


def settings(base, **changes):
    return TrainingArguments(
        pretrained_model_name_or_path=str(base), guidance_input_channels=[35, 134],
        guidance_embedding_channels=32, guidance_block_out_channels=[8, 16, 32, 32], **changes,
    )  # fmt: skip


def loss_of_a_batch(model, seed=0, num_frames=2):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, num_frames, 4, 8, 8, generator=generator)
    conditions = {
        "reference_latents": torch.randn(2, 4, 8, 8, generator=generator),
        "image_tokens": torch.randn(2, 1, 32, generator=generator),
        "guidance": {
            "music": torch.randn(2, num_frames, 35, generator=generator),
            "pose": torch.rand(2, num_frames, 134, 3, generator=generator),
        },
    }
    # Half of the samples lose their reference, half a type: every parameter must still get a gradient (DDP).
    objective = DiffusionObjective(
        make_noise_scheduler(), reference_dropout=0.5, guidance_dropout={"music": 0.5, "pose": 0.5}
    )
    return objective(model, latents, conditions, objective.draw(latents, [(seed, 0), (seed, 1)]))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_trains_its_parts_and_freezes_the_rest(tiny_base, stage):
    model = make_model(settings(tiny_base, training_stage=stage), SHAPES)
    assert model.has_motion_modules == STAGES[stage].has_motion_modules
    assert set(trained_parts(model)) == set(STAGES[stage].trained_parts)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(optimizer_groups(model, 1e-3, 0.1))
    for seed in range(2):
        optimizer.zero_grad()
        loss_of_a_batch(model, seed, num_frames=1 if stage == "image" else 2).backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        optimizer.step()
    changed = {
        name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])
    }
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert changed <= trained
    assert len(changed) > 0.9 * len(
        trained
    )  # behind layers that start at zero a few have moved by nothing yet


def test_every_parameter_belongs_to_one_part(tiny_base):
    model = make_model(settings(tiny_base), SHAPES)
    parts = parameters_by_part(model)
    assert tuple(parts) == PARTS
    assert sum(len(parameters) for parameters in parts.values()) == len(list(model.parameters()))
    assert all(".motion_modules." in name for name in parts["motion_modules"])
    assert not any(".motion_modules." in name for name in parts["denoising_unet"])


def test_pretrained_weights_learn_slowly(tiny_base):
    model = make_model(settings(tiny_base), SHAPES)
    new, pretrained = optimizer_groups(model, 1e-3, 0.1)
    assert (new["lr"], pretrained["lr"]) == (1e-3, pytest.approx(1e-4))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in pretrained["params"]} <= model.pretrained_names
    new_names = {names[id(parameter)] for parameter in new["params"]}
    assert all(".motion_modules." in name or name.startswith("guidance_encoders.") for name in new_names)
    assert len(optimizer_groups(model, 1e-3, 0.1)) == 2


def test_an_official_champ_folder_starts_the_motion_stage(golden_dir):
    arguments = TrainingArguments(
        pretrained_model_name_or_path=str(golden_dir / "base"),
        champ_checkpoint_dir=str(golden_dir / "official"),
        training_stage="motion",
        guidance_types=["depth", "normal", "dwpose"],
        guidance_input_channels=[3, 3, 3],
        guidance_embedding_channels=32,
        guidance_block_out_channels=[16, 32, 64, 32],
    )
    model = make_model(arguments, {})
    assert set(trained_parts(model)) == {"motion_modules"}
    assert set(model.pretrained_names) >= model.motion_parameter_names()
    official = torch.load(golden_dir / "official" / "denoising_unet.pth", weights_only=True)
    assert torch.equal(model.unet.conv_in.weight, official["conv_in.weight"])


def test_motion_modules_come_from_their_file(tiny_base, tmp_path):
    model = make_model(settings(tiny_base), SHAPES)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in model.motion_parameter_names():
                parameter.normal_()
    model.save_champ_checkpoint(tmp_path / "official")
    image_stage = make_model(settings(tiny_base, training_stage="image"), SHAPES)
    image_stage.save_pretrained(tmp_path / "final")
    path = str(tmp_path / "official" / "motion_module.pth")
    for start in ({}, {"champ_checkpoint_dir": str(tmp_path / "final")}):
        loaded = make_model(
            settings(tiny_base, training_stage="motion", motion_module_path=path, **start), SHAPES
        )
        found = dict(loaded.named_parameters())
        for name in model.motion_parameter_names():
            assert torch.equal(found[name], model.get_parameter(name))
        assert set(loaded.pretrained_names) >= loaded.motion_parameter_names()


def test_statistics_go_to_the_encoder_once(tiny_base):
    model = make_model(settings(tiny_base), SHAPES)
    mean, std = torch.arange(35.0), torch.full((35,), 2.0)
    champ.set_feature_statistics(model, {"music": (mean, std)})
    assert torch.equal(model.guidance_encoders.encoders["music"].feature_mean, mean)
    model.pretrained_names = frozenset(name for name, _ in model.named_parameters())
    champ.set_feature_statistics(model, {"music": (mean + 1, std)})  # weights trained with others: kept
    assert torch.equal(model.guidance_encoders.encoders["music"].feature_mean, mean)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_schedules_warm_up(name):
    arguments = TrainingArguments(lr_scheduler=name, lr_warmup_steps=4, lr_power=2.0, lr_num_cycles=2)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    optimizer = make_optimizer(groups, arguments)
    schedule = LearningRateSchedule(optimizer, arguments, 12)
    rates = [schedule.set(optimizer, step) for step in range(1, 13)]
    assert rates[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert (rates[-1] < 0.5) == (name != "constant")
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rates[-1], 0.1 * rates[-1]])


def test_schedules_differ_as_they_should():
    def rates(**settings):
        arguments = TrainingArguments(lr_warmup_steps=0, **settings)
        optimizer = make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}], arguments)
        schedule = LearningRateSchedule(optimizer, arguments, 8)
        return [schedule.set(optimizer, step) for step in range(1, 9)]

    assert rates(lr_scheduler="constant") == [1.0] * 8
    once, twice = (rates(lr_scheduler="cosine_with_restarts", lr_num_cycles=cycles) for cycles in (1, 2))
    assert once[4] < once[3] and twice[4] == 1.0
    assert rates(lr_scheduler="polynomial", lr_power=2.0)[4] == pytest.approx(0.25, abs=1e-4)
    assert rates(lr_scheduler="linear")[4] == 0.5


def test_gradients_are_measured_by_part_and_clipped_as_a_whole():
    one, two, idle = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    one.grad, two.grad = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    norms = gradient_norms({"one": [one, idle], "two": [two], "idle": [idle]})
    assert {part: norm.item() for part, norm in norms.items()} == {"one": 3.0, "two": 4.0}
    clip_gradients([one, two, idle], 10.0, 5.0)
    assert one.grad[0] == 3.0
    clip_gradients([one, two, idle], 1.0, 5.0)
    assert one.grad[0].item() == pytest.approx(0.6) and two.grad[1].item() == pytest.approx(0.8)


def test_weights_to_start_from_must_fit(tiny_base, tmp_path):
    arguments = settings(tiny_base, training_stage="motion", champ_checkpoint_dir=str(tmp_path))
    model = make_model(settings(tiny_base, training_stage="motion"), SHAPES)
    with pytest.raises(ConfigError, match="does not train guidance encoders, and .* has none for music"):
        champ.check_start(arguments, arguments.prediction_type, model, arguments.guidance_types)
    model.pretrained_names |= {name for name, _ in model.named_parameters()}
    champ.check_start(arguments, arguments.prediction_type, model, arguments.guidance_types)
    make_noise_scheduler("epsilon").save_pretrained(tmp_path / "scheduler")
    with pytest.raises(ConfigError, match="--prediction_type epsilon, now it is v_prediction"):
        champ.check_start(arguments, arguments.prediction_type, model, arguments.guidance_types)


def test_dropout_by_type():
    for shares, expected in (([0.1], {"music": 0.1, "pose": 0.1}), ([0.1, 0.3], {"music": 0.1, "pose": 0.3})):
        settings = TrainingArguments(guidance_dropout=shares)
        assert make_objective(settings, settings.guidance_types, None).guidance_dropout == expected


@pytest.mark.parametrize(("types", "num_lines"), [(["music"], 1), (["music", "pose"], 0)])
def test_encoder_widths_that_nothing_reads_are_told(tiny_base, types, num_lines):
    arguments = settings(tiny_base, guidance_types=types)
    arguments.guidance_input_channels = [35, 134][: len(types)]
    lines = champ.settings_without_effect_on(make_model(arguments, SHAPES), arguments)
    assert len(lines) == num_lines and all("--guidance_block_out_channels" in line for line in lines)
