"""Rows and times: another rate, too many rows, too few."""

import json
import re
import shutil

import numpy as np

from .planting import EACH_FRAME, NEAREST, OR_RATE, file_too_many, folder_of, one_file


def save_at_a_rate(root, rate, num_rows):
    """Music whose feature 0 is the time, in frames of the video, in both samples."""
    frames = np.arange(num_rows) / rate * 12
    for sample_id in ("dance_001", "dance_002"):
        shutil.rmtree(folder_of(root, "music_features", sample_id), ignore_errors=True)
        rows = np.stack([frames, *np.repeat([[1], [2], [3], [4]], num_rows, axis=1)], 1)
        np.save(root / "music_features" / f"{sample_id}.npy", rows)


def state_rate(root, rate):
    (root / "music_features" / "meta.json").write_text(json.dumps({"fps": rate}))


def proposed_rate(fault):
    return float(re.findall(r"([\d.]+) per second would fit", fault.fix)[0])


def rate_too_high(root):
    save_at_a_rate(root, 30, 60)
    state_rate(root, 60)
    fault = yield "extract it for the whole video, or correct the rate (30 per second would fit)"
    state_rate(root, proposed_rate(fault))
    yield NEAREST


def rate_of_librosa(root):
    save_at_a_rate(root, 22050 / 512, 87)
    state_rate(root, 100)
    fault = yield "extract it for the whole video, or correct the rate (43.066 per second would fit)"
    state_rate(root, proposed_rate(fault))
    yield NEAREST


def music_that_ends_early(root):
    save_at_a_rate(root, 100, 130)
    state_rate(root, 100)
    yield "extract it for the whole video"  # and no word of a rate, at which it would be out of time
    save_at_a_rate(root, 100, 200)
    yield NEAREST


def song_that_goes_on(root):
    save_at_a_rate(root, 100, 530)
    state_rate(root, 100)
    yield "cut off the rest"
    save_at_a_rate(root, 100, 200)
    yield NEAREST


def rate_too_low(root):
    save_at_a_rate(root, 50, 100)
    state_rate(root, 20)
    fault = yield "correct the rate (50 per second would fit), or cut off the rest"
    state_rate(root, proposed_rate(fault))
    yield NEAREST


def rows_of_a_rate(root):
    save_at_a_rate(root, 25, 50)
    yield EACH_FRAME + OR_RATE
    state_rate(root, 25)
    yield NEAREST


def rate_where_none_is_needed(root):
    path, _ = one_file(root)
    path.with_suffix("").mkdir()
    meta = path.with_suffix("") / "meta.json"
    meta.write_text('{"fps": 20}')
    fix = "there is a row for each frame: state none"
    yield f"extract it for the whole video, or correct the rate ({fix})"
    meta.unlink()


def a_row_too_many(root):
    np.save(folder_of(root, "music_features") / "frame_024.npy", np.ones(5))
    yield EACH_FRAME + OR_RATE
    (folder_of(root, "music_features") / "frame_024.npy").unlink()


def a_pose_too_many(root):
    content = json.dumps({"keypoints": [[0.5, 0.5, 1]] * 134})
    yield from file_too_many(folder_of(root, "poses") / "frame_024.json", content, EACH_FRAME)


def nonsense_rate(root):
    path = folder_of(root, "music_features") / "meta.json"
    path.write_text('{"fps": "fast"}')
    yield 'write the rows per second, as {"fps": 30}, or remove the file'
    path.write_text('{"fps": 12}')


def other_words_for_the_rate(root):
    path = folder_of(root, "music_features") / "meta.json"
    fix = 'write the rows per second, as {"fps": 30}, or remove the file'
    yield from file_too_many(path, '{"sample_rate": 22050}', fix)
