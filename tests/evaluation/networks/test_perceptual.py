"""LPIPS's two files, and those that are not."""

import re

import pytest
import torch

from evaluation.metrics.perceptual import BACKBONES
from evaluation.networks import load_perceptual_network
from system.errors import ModelError


def write(path, state):
    torch.save(state, path)
    return path


def backbone(name):
    shapes = BACKBONES[name].shapes
    weights = {f"features.{place}.weight": torch.zeros(1).expand(shape) for place, shape in shapes.items()}
    biases = {f"features.{place}.bias": torch.zeros(shape[0]) for place, shape in shapes.items()}
    return {**weights, **biases, "classifier.6.bias": torch.zeros(1000)}


def heads(name):
    widths = BACKBONES[name].widths
    return {f"lin{place}.model.1.weight": torch.ones(1, width, 1, 1) for place, width in enumerate(widths)}


@pytest.mark.parametrize("name", BACKBONES)
def test_which_network_it_is_is_told_by_its_shapes(name, tmp_path):
    paths = write(tmp_path / "net.pth", backbone(name)), write(tmp_path / "heads.pth", heads(name))
    network = load_perceptual_network(*paths)
    assert network.name == name
    assert [network.get_buffer(f"head_{place}").shape for place in range(5)] == [
        (width,) for width in BACKBONES[name].widths
    ]


def test_files_that_are_something_else(tmp_path):
    net, right = write(tmp_path / "net.pth", backbone("alex")), write(tmp_path / "alex.pth", heads("alex"))
    vgg = write(tmp_path / "vgg.pth", heads("vgg"))
    for paths, said in [
        ((net, vgg), f"{vgg} has the linear heads of vgg, and the network is alex: give alex.pth"),
        ((net, net), f"{net} holds no heads of these widths []: expected LPIPS's linear heads for alex"),
        ((right, right), f"{right} is not one of LPIPS's networks: expected torchvision's vgg16 or alexnet"),
        ((tmp_path / "no.pth", right), f"{tmp_path / 'no.pth'} does not exist"),
    ]:
        with pytest.raises(ModelError, match=re.escape(said)):
            load_perceptual_network(*paths)


def test_vgg16_is_not_vgg19(tmp_path):
    state = backbone("vgg") | {"features.34.weight": torch.zeros(1).expand(512, 512, 3, 3)}
    state["features.34.bias"] = torch.zeros(512)
    net = write(tmp_path / "vgg19.pth", state)
    with pytest.raises(ModelError, match="not one of LPIPS's networks"):
        load_perceptual_network(net, net)


def test_a_pickle_with_code_is_refused(tmp_path):
    net = write(tmp_path / "net.pth", {"features.0.weight": torch.nn.Linear(1, 1)})
    with pytest.raises(ModelError, match="holds Python code to run"):
        load_perceptual_network(net, net)


@pytest.mark.parametrize("text", ["hello", "a text", "0", "}", "(", "state", "Not found"])
def test_a_text_instead_of_weights(text, tmp_path):
    (tmp_path / "vgg.pth").write_text(text)
    with pytest.raises(ModelError, match="cannot be read as model weights"):
        load_perceptual_network(tmp_path / "vgg.pth", tmp_path / "vgg.pth")
