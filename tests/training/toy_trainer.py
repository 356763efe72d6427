"""A second trainer: a line fitted to numbers. All that it brings is below; the rest is `fit`."""

import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import default_collate

from system.command_line import run_main
from training.batches import SampleStream, endless_batches
from training.execution.launch import open_session
from training.loop import Task, fit
from training.objective import mix_seed
from training.settings.fields import RunSettings
from training.setup import start_run
from training.step import MicroBatch


class Numbers:
    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        return {"sample_id": f"number_{index}", "x": torch.tensor([index / 6])}


class Line(Task):
    def __init__(self, bad_x):
        torch.manual_seed(0)
        self.bad_x, self.model = bad_x, nn.Linear(1, 1)

    def loss(self, model, batch):
        generators = [torch.Generator().manual_seed(mix_seed(0, place)) for place in batch["position"]]
        noise = torch.stack([torch.randn(1, generator=one) for one in generators])

        def repeat(model):
            scale = torch.where(batch["x"] == self.bad_x, float("nan"), 1.0)
            return (model(batch["x"] + 0.1 * noise) * scale - 3 * batch["x"]).square().mean()

        return MicroBatch(batch["sample_id"], repeat(model), repeat)

    def write_final(self, folder):
        save_file(self.model.state_dict(), folder / "line.safetensors")


def train(settings, bad_x=-1.0):
    with open_session(settings) as session:
        run, accelerator = start_run(settings, session, Line(bad_x), num_samples=6), session.accelerator
        ranks = {"rank": accelerator.process_index, "num_processes": accelerator.num_processes}
        batch_size, start = settings.train_batch_size, run.state.samples_seen
        stream = SampleStream(range(6), batch_size=batch_size, seed=0, start_position=start, **ranks)
        run.batches = endless_batches(Numbers(), stream, default_collate, num_workers=0)
        return fit(run)


if __name__ == "__main__":
    settings = RunSettings(output_dir=sys.argv[1], max_train_steps=4, train_batch_size=int(sys.argv[2]))
    sys.exit(run_main("toy_trainer.py", lambda: train(settings)))
