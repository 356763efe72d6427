"""Encoders of images and clips, tiny ones made on the spot."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    CLIPVisionModelWithProjection,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2Model,
)

from datasets.transforms import clip_image_transform
from evaluation.networks import (
    ImageEncoder,
    load_i3d,
    load_image_encoder,
    load_inception,
    load_resnet3d,
    load_video_encoder,
)
from evaluation.networks.videos import ResNet3d
from system.errors import ModelError


@pytest.fixture(scope="module")
def frames():
    smooth = np.linspace(0, 255, 40 * 24).reshape(40, 24)
    return np.stack([np.stack([smooth, smooth[::-1], 255 - smooth], -1) / (1 + n) for n in range(3)]).astype(
        np.uint8
    )


class Inception(nn.Module):
    """Answers as StyleGAN's: features of 0..255, or classes."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        means = images.mean(dim=(2, 3))
        return means if return_features else means[:, :1]


class I3d(nn.Module):
    def forward(
        self, clips: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert not rescale and not resize and return_features
        assert clips.shape[1] == 3 and clips.shape[3:] == (224, 224)
        return clips.mean(dim=(3, 4)).flatten(1)


def script(module, path):
    torch.jit.script(module).save(str(path))
    return path


# ---- images ----


def test_a_clip_encoder_sees_what_sampling_shows_it(tiny_base, frames):
    by_base, by_folder = load_image_encoder(tiny_base), load_image_encoder(tiny_base / "image_encoder")
    found = by_base(frames)
    model = CLIPVisionModelWithProjection.from_pretrained(tiny_base / "image_encoder")
    images = torch.stack([clip_image_transform(frame) for frame in frames])
    with torch.no_grad():
        expected = model(images).image_embeds.numpy()
    assert found.dtype == np.float32 and found == pytest.approx(expected, abs=2e-3)  # Pillow rounds to 1/255
    assert (by_folder(frames) == found).all() and (ImageEncoder(model)(frames) == found).all()
    assert by_base(frames[:0]).shape == (0, 32)


def test_no_clip_encoder(tiny_base, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load_image_encoder(tmp_path / "nothing")
    with pytest.raises(ModelError, match="does not fit|cannot be loaded"):
        load_image_encoder(tiny_base / "vae")


def test_inception_is_asked_for_features_of_0_to_255(tmp_path, frames):
    found = load_inception(script(Inception(), tmp_path / "inception.pt"))(frames)
    assert found == pytest.approx(frames.mean(axis=(1, 2)), abs=1)
    small = script(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), tmp_path / "small.pt")
    with pytest.raises(ModelError, match=r"small.pt: cannot take images \[3, 3, 299, 299\]: "):
        load_inception(small)(frames)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), (b"?", "cannot be loaded"), ({}, "holds no")]
)
def test_no_torchscript(content, said, tmp_path):
    path = tmp_path / "inception.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ModelError, match=rf"inception.pt.* {said}.*expected Inception as TorchScript"):
        load_inception(path)


# ---- clips ----


def test_i3d_is_given_what_it_expects(tmp_path, frames):
    found = load_i3d(script(I3d(), tmp_path / "i3d.pt"))(frames[None])
    expected = (frames / 127.5 - 1).mean(axis=(1, 2)).T.reshape(1, -1)
    assert found == pytest.approx(expected, abs=0.01)


def test_a_network_must_give_a_row_for_each_clip(tmp_path, frames):
    class Whole(nn.Module):
        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return clips.mean()

    with pytest.raises(ModelError, match="expected one row of features for each"):
        load_i3d(script(Whole(), tmp_path / "i3d.pt"))(frames[None])


@pytest.fixture
def small_resnet(monkeypatch):
    """The same layout with a block per layer, an eighth as wide."""
    monkeypatch.setattr("evaluation.networks.videos.ResNet3d", lambda: ResNet3d((1, 1, 1, 1), width=8))
    torch.manual_seed(0)
    return ResNet3d((1, 1, 1, 1), width=8).eval()


def test_a_3d_resnet_of_weights_and_of_torchscript(small_resnet, tmp_path, frames):
    # As published: the whole training state, the model inside DataParallel, with its last layer.
    state = {f"module.{key}": value for key, value in small_resnet.state_dict().items()}
    state |= {"module.fc.weight": torch.zeros(400, 256), "module.fc.bias": torch.zeros(400)}
    torch.save({"epoch": 3, "arch": "resnet-50", "state_dict": state}, tmp_path / "resnet.pth")
    of_weights = load_resnet3d(tmp_path / "resnet.pth")(frames[None])
    traced = torch.jit.trace(small_resnet, torch.zeros(1, 3, 3, 112, 112))
    traced.save(str(tmp_path / "resnet.pt"))
    assert of_weights.shape == (1, 256)
    assert load_resnet3d(tmp_path / "resnet.pt")(frames[None]) == pytest.approx(of_weights, abs=1e-4)
    del state["module.conv1.weight"]
    torch.save(state, tmp_path / "broken.pth")
    with pytest.raises(
        ModelError, match=r"broken.pth does not fit the model: 1 keys missing \(conv1.weight\)"
    ):
        load_resnet3d(tmp_path / "broken.pth")


def test_the_whole_resnet_is_the_published_one():
    with torch.device("meta"):
        state = ResNet3d().state_dict()
    # The 23,508,032 weights of the flat one, with cubes for squares: 3 times the 3x3s, 7 times the 7x7.
    weights = [value for key, value in state.items() if key.endswith(("weight", "bias"))]
    assert sum(value.numel() for value in weights) == 23_508_032 + 2 * 11_317_248 + 6 * 9_408
    assert state["layer4.2.conv3.weight"].shape == (2048, 512, 1, 1, 1)
    assert state["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1, 1)


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 8,
    "tubelet_size": 2,
}


@pytest.fixture(scope="module")
def videomae(tmp_path_factory):
    path = tmp_path_factory.mktemp("videomae")
    torch.manual_seed(0)
    config = VideoMAEConfig(
        **TINY, image_size=16, num_frames=4, intermediate_size=16, decoder_hidden_size=8,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=1, decoder_intermediate_size=8,
    )  # fmt: skip
    VideoMAEForPreTraining(config).save_pretrained(path)  # published ones have a decoder too
    return path


def test_videomae_sees_as_many_frames_as_it_was_trained_on(videomae, frames):
    clips = np.stack([frames[[0, 0, 1, 1, 2, 2]], frames[[0] * 6]])
    found = load_video_encoder(videomae)(clips)
    assert found.shape == (2, 16) and not np.allclose(found[0], found[1])
    assert load_video_encoder(videomae)(clips[:, [0, 2, 3, 5]]) == pytest.approx(found, abs=1e-5)
    model = VideoMAEModel.from_pretrained(videomae).eval()
    flat = np.full((1, 4, 16, 16, 3), 51, np.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    inputs = ((0.2 - mean) / std)[None, None, :, None, None].expand(1, 4, 3, 16, 16)
    with torch.no_grad():
        expected = model(inputs).last_hidden_state.mean(dim=1).numpy()
    assert load_video_encoder(videomae)(flat) == pytest.approx(expected, abs=1e-5)


def test_a_folder_states_its_mean_and_deviation(videomae, frames, tmp_path):
    for path in videomae.iterdir():
        (tmp_path / path.name).symlink_to(path)
    stated = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    found = [load_video_encoder(path)(frames[None, [0, 1, 2, 2]]) for path in (videomae, tmp_path)]
    assert not np.allclose(*found)
    for content in ("{", "[]", '{"image_mean": [0.5]}', '{"image_mean": 0.5}'):
        (tmp_path / "preprocessor_config.json").write_text(content)
        with pytest.raises(
            ModelError, match="preprocessor_config.json cannot be read: .*; expected image_mean"
        ):
            load_video_encoder(tmp_path)


def test_v_jepa_2(frames, tmp_path):
    torch.manual_seed(0)
    config = VJEPA2Config(
        **TINY | {"hidden_size": 24}, crop_size=16, frames_per_clip=4, mlp_ratio=1, pred_hidden_size=24,
        pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip
    VJEPA2Model(config).save_pretrained(tmp_path)
    found = load_video_encoder(tmp_path)(np.stack([frames[[0, 1, 2, 2]], frames[[2] * 4]]))
    assert found.shape == (2, 24) and not np.allclose(found[0], found[1])


def test_folders_that_are_no_video_encoder(videomae, tiny_base, tmp_path):
    for path, said in [
        (tmp_path / "nothing", "is no folder"),
        (tmp_path, "has no config.json"),
        (tiny_base / "image_encoder", "holds a clip_vision_model model"),
    ]:
        with pytest.raises(
            ModelError, match=rf"{said}: expected a transformers folder of VideoMAE or V-JEPA 2"
        ):
            load_video_encoder(path)
    (tmp_path / "config.json").write_text((videomae / "config.json").read_text())
    with pytest.raises(ModelError, match="cannot be loaded: .*; expected a transformers folder"):
        load_video_encoder(tmp_path)
