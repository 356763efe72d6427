"""Compiled for sampling: the same numbers with and without a reference (training: tests/training/execution).

Compilation takes seconds per block: here a backend takes its place that only traces.
"""

import pytest
import torch

from models.compilation import compile_blocks

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_sampling_runs_compiled_and_training_does_not(make_model, make_inputs):
    model, inputs = make_model(motion_modules=False), make_inputs(num_clips=1, num_frames=2)
    features = model.encode_guidance(inputs["guidance"], (8, 8))
    bank = model.project_reference(
        model.encode_reference(inputs["reference_latents"], inputs["image_tokens"])
    )

    @torch.no_grad()
    def both_halves() -> list[torch.Tensor]:
        arguments = inputs["noisy_latents"], inputs["timesteps"], inputs["image_tokens"]
        return [model.denoise(*arguments, one, features) for one in (bank, None)]

    plain, lines, graphs = both_halves(), [], []

    def trace(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_blocks([model.unet.mid_block], lines.append, training=False, backend=trace)
    model.train()
    both_halves()
    assert not graphs
    model.eval()
    for _ in range(2):  # steps
        for found, expected in zip(both_halves(), plain, strict=True):
            torch.testing.assert_close(found, expected)
        num_graphs = len(graphs)
        torch._dynamo.config.error_on_recompile = True
    assert len(graphs) == num_graphs > 0
    assert len(lines) == 2 and "compiling" in lines[1]
