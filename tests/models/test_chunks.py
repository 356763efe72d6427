"""Few images at once on a CPU: the same numbers, and only where no frame looks at another."""

import pytest
import torch

from models.chunks import CPU_PIXELS, images_at_once

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("device", "size", "expected"),
    [
        (CPU, (256, 256), 2),
        (CPU, (128, 128), 8),
        (CPU, (64, 64), 10),  # all there are
        (CPU, (768, 512), 1),  # never none
        (GPU, (768, 512), 10),
    ],
)
def test_a_cpu_takes_as_many_images_as_fit_its_cache(device, size, expected):
    assert images_at_once(device, size, 10, CPU_PIXELS) == expected


@pytest.mark.parametrize("trained", [True, False])
def test_encoding_in_parts_changes_no_number(make_model, make_inputs, trained):
    model, inputs = make_model(), make_inputs()  # 2 clips of 3 frames, 64x64 pixels
    for parameter in model.guidance_encoders.parameters():
        parameter.requires_grad_(trained)
    shapes = {"music": [], "pose": []}
    for name, encoder in model.guidance_encoders.encoders.items():
        encoder.register_forward_hook(lambda _, args, __, name=name: shapes[name].append(args[0].shape[:2]))

    def step():
        model.zero_grad()
        prediction = model(**inputs)
        prediction.square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return prediction.detach(), {name: one for name, one in gradients.items() if one is not None}

    expected, expected_gradients = step()
    model.guidance_encoders.cpu_pixels = 2 * 64 * 64
    prediction, gradients = step()
    assert shapes["pose"] == [(2, 3), (1, 2), (1, 2), (1, 2)]
    assert shapes["music"] == [(2, 3), (2, 3)]  # its frames look at one another
    torch.testing.assert_close(prediction, expected, atol=1e-5, rtol=1e-5)
    assert set(gradients) == set(expected_gradients)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4)
