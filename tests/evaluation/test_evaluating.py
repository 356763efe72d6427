"""The work of an evaluation: what is measured once is found again."""

from types import SimpleNamespace

from evaluation.evaluating import Work
from evaluation.results import ClipResult, ClipStore


class AskedModel:
    """A sampler whose losses are counted."""

    def __init__(self) -> None:
        self.pipeline, self.num_asked = SimpleNamespace(scheduler=None), 0

    def losses(self, clips, objective, most_frames, on_clip):
        self.num_asked += 1
        for _ in clips:
            on_clip()
        return [{"true": [1.0], "swapped/pose": [1 + share]} for share in (1 / 3, 0.5)]


def test_guidance_gaps_are_measured_once(tmp_path, capsys):
    model, digests = AskedModel(), {"a": "1", "b": "2"}
    evaluator = SimpleNamespace(
        predictions=SimpleNamespace(sampler=model), wanted=["guidance_gap"], folder=SimpleNamespace(clip=str)
    )
    work = Work(evaluator, {}, ClipStore(tmp_path), digests)
    results = [ClipResult(name, 8.0, 4) for name in digests]
    first, again = (work.gaps(results, lambda scheduler: None) for _ in range(2))
    assert model.num_asked == 1 and again.keys() == first.keys() == {"guidance_gap/pose"}
    assert abs(again["guidance_gap/pose"].value - 5 / 12) < 1e-8
    assert "guidance gaps: 100%" in capsys.readouterr().err
    work.digests["b"] = "3"  # another video, or another model
    work.gaps(results, lambda scheduler: None)
    work.gaps(results[:1], lambda scheduler: None)
    assert model.num_asked == 3
