"""What is encoded for the cache has the bits of what training encodes; processes fail and stop together."""

import signal
from types import SimpleNamespace

import pytest
import torch

from caching import building
from caching.batch_encoding import encode_batch
from caching.building import CacheEncoder, build_cache, reasons_to_rebuild
from models import FrozenEncoders
from system.errors import ConfigError, DataError
from system.stop_request import Stopped


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("batch_size", "sequence_length"), [(1, 1), (3, 1), (2, 4), (1, 16)])
def test_batches_of_the_same_shape_give_the_same_bits(
    tiny_base, tiny_kl, batch_size, sequence_length, precision
):
    frozen = FrozenEncoders.from_pretrained(tiny_base, vae_model_name_or_path=tiny_kl / "vae").to(precision)
    encoder = CacheEncoder(frozen, "cpu", batch_size=batch_size, sequence_length=sequence_length)
    video = torch.rand(19, 3, 64, 64) * 2 - 1  # 19 fits no batch: the last one is filled up
    reference, clip = torch.rand(batch_size, 3, 64, 64), torch.rand(batch_size, 3, 224, 224)
    parts = [encoder.encode_frames(part) for part in video.split(encoder.num_frames)]
    cached = {name: torch.cat([part[name] for part in parts]) for name in ("latent_mean", "latent_std")}
    assert {value.dtype for value in cached.values()} == {precision}
    starts = [19 - sequence_length - 2 * place for place in range(batch_size)][::-1]
    starts = [max(0, start) for start in starts]
    rows = [slice(start, start + sequence_length) for start in starts]
    once = [encoder.encode_reference(reference[place], clip[place]) for place in range(batch_size)]
    seeds, guidance = list(range(batch_size)), {"pose": torch.zeros(batch_size)}
    plain = encode_batch(
        frozen,
        {"frames": torch.stack([video[row] for row in rows]), "reference_image": reference,
         "clip_image": clip, "guidance": guidance},
        seeds,
    )  # fmt: skip
    from_cache = encode_batch(
        frozen,
        {**{name: torch.stack([value[row] for row in rows]) for name, value in cached.items()},
         **{name: torch.stack([one[name] for one in once]) for name in once[0]}, "guidance": guidance},
        seeds,
    )  # fmt: skip
    assert torch.equal(plain[0], from_cache[0]) and plain[0].stride() == from_cache[0].stride()
    for name in ("reference_latents", "image_tokens"):
        assert torch.equal(plain[1][name], from_cache[1][name])


class FakeCache:
    """Three samples of two frames; `fault` is raised from building the second."""

    cache_dir, title = "cache", "latent cache"

    def __init__(self, tmp_path, fault=None):
        self.paths = [tmp_path / f"dance_{n}-ab.safetensors" for n in range(3)]
        self.fault, self.built, self.was_tidied = fault, [], False

    def note_on_other_settings(self):
        return "other vae than before"

    def find(self, indices, process_index):
        return [
            SimpleNamespace(index=n, path=self.paths[n], num_frames=2,
                            reason=None if self.paths[n].exists() else ("new", "video changed")[n % 2])
            for n in indices
        ]  # fmt: skip

    def num_bytes(self, *numbers):
        self.estimated = numbers
        return 1

    def check_space(self, needed):
        assert needed == 1

    def remove_abandoned(self):
        self.was_tidied = not self.built

    def build(self, entry, encoder, on_part):
        if self.fault is not None and entry.index == 1:
            self.fault()
        on_part(2)
        self.paths[entry.index].write_text("whole")
        self.built.append(entry.index)


def build(cache, said):
    frozen = FrozenEncoders(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    frozen.vae.device = torch.device("cpu")
    encoder = CacheEncoder(frozen, "cpu", batch_size=1, sequence_length=1)
    accelerator = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)
    return build_cache(
        cache, [0, 1, 2], encoder, accelerator, num_bytes=cache.num_bytes, say=said.append
    )  # fmt: skip


def test_what_is_missing_is_built_and_told(tmp_path):
    cache, said = FakeCache(tmp_path), []
    cache.paths[0].write_text("whole")
    assert build(cache, said) == dict(enumerate(cache.paths))
    assert cache.built == [1, 2] and cache.estimated == (4, 2) and cache.was_tidied
    assert said == [
        "latent cache cache: 1 of 3 samples are there",
        "latent cache: other vae than before",
        "latent cache: 1 to rebuild, video changed: dance_1",
        "latent cache: 2 samples written, 1 of them rebuilt",
    ]
    said.clear()
    assert build(cache, said) == dict(enumerate(cache.paths)) and said == []


def test_a_fault_and_a_signal_end_it(tmp_path):
    def fault():
        raise DataError("dance.mp4", "its video is gone")

    cache = FakeCache(tmp_path, fault)
    with pytest.raises(DataError, match="its video is gone"):
        build(cache, [])
    cache = FakeCache(tmp_path, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped) as raised:
        build(cache, [])
    assert raised.value.signal_number == signal.SIGTERM and cache.paths[0].exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_processs_error_is_raised_here_too(monkeypatch):
    outcomes = [("mine", None), (None, ConfigError("theirs"))]
    monkeypatch.setattr(building, "gather_object", lambda own: outcomes)
    with pytest.raises(ConfigError, match="theirs"):
        building.together(lambda: "mine")


def test_files_that_another_machine_keeps_to_itself(tmp_path):
    cache = FakeCache(tmp_path)
    entries = cache.find([0, 1], 0)
    entries[0].path.write_text("whole")
    with pytest.raises(ConfigError, match="--cache_dir cache: 1 files .* dance_1-ab.* all machines share"):
        building._check_all_there(cache, entries)


def test_many_samples_are_one_line():
    entries = [
        SimpleNamespace(reason="damaged", path=SimpleNamespace(stem=f"dance-{n}-0a1b")) for n in range(9)
    ]
    assert reasons_to_rebuild(entries) == ["9 to rebuild, damaged: dance-0, dance-1, dance-2, ..."]
