"""A sample's images for the report page: frames with their key points, maps, and features over time.

All of a sample lies under one time axis, from its first frame to the end of its last. It is cut into equal
tiles; a tile shows the frame at its middle. What cannot be read is left out: the faults say why.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from PIL import Image

from datasets.checking.sample_check import CheckSettings
from datasets.data_folder import DataFolder, Sample, read_metadata
from datasets.guidance.drawing import draw_map, resize_image
from datasets.guidance.track import Track
from datasets.media.pictures import read_image
from datasets.media.video import VideoReader
from datasets.takes import Timeline, read_timeline

NUM_TILES = 8
TILE_WIDTH, MAX_TILE_HEIGHT = 144, 320  # pixels
REFERENCE_SIZE = 200  # of the longer side
HEAT_COLUMNS, MAX_HEAT_ROWS = 500, 64  # of a feature image
MAX_LINE_POINTS = 1500
BEAT_COLUMN, AIST_WIDTH = 34, 35  # AIST++'s 35 features end with one that is 1 at a beat
UNREAD = (250, 214, 214)


@dataclass
class FeatureGraph:
    """A type's features over the time axis: the first one as a line, the others as colours."""

    type_name: str
    num_features: int
    line: np.ndarray  # float [n, 2]: place in 0..1 of the time axis, value (NaN: a row that cannot be read)
    heat: bytes | None  # an image, one row per feature; None of a single one


@dataclass
class SampleImages:
    """Images are WebP files."""

    reference: bytes | None = None
    frames: bytes | None = None  # the strip of tiles
    tile_frames: list[int] = field(default_factory=list)
    tile_seconds: list[float] = field(default_factory=list)
    tile_aspect: float = 1.0  # width over height
    jumps: bytes | None = None  # the frames before and at each jump of a track, by twos
    jump_frames: list[int] = field(default_factory=list)
    undecodable: list[int] = field(default_factory=list)  # frames shown as empty tiles
    maps: dict[str, bytes] = field(default_factory=dict)
    graphs: list[FeatureGraph] = field(default_factory=list)
    beats: list[float] = field(default_factory=list)  # in 0..1 of the time axis
    beat_source: str = ""
    metadata: dict = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        images = [
            self.reference,
            self.frames,
            self.jumps,
            *self.maps.values(),
            *(graph.heat for graph in self.graphs),
        ]
        return sum(len(image or b"") for image in images)


def draw_sample(
    folder: DataFolder, settings: CheckSettings, sample: Sample, jumps: Sequence[int] = ()
) -> SampleImages:
    """Return the images of a sample; raises nothing for what is wrong with it.

    jumps: frames that a track of points jumps to.
    """
    return _SampleDrawing(folder, settings, sample, jumps).draw()


def no_images(item: object) -> SampleImages:
    return SampleImages()


class _SampleDrawing:
    def __init__(
        self, folder: DataFolder, settings: CheckSettings, sample: Sample, jumps: Sequence[int]
    ) -> None:
        self.folder, self.settings, self.sample, self.jumps = folder, settings, sample, jumps
        self.images = SampleImages()
        self.tracks: dict[str, Track] = {}

    def draw(self) -> SampleImages:
        images = self.images
        images.metadata = _or_none(lambda: read_metadata(self.folder.root, self.sample.sample_id)) or {}
        if self.folder.needs_videos:
            reference = _or_none(lambda: read_image(self.sample.reference_path()))
            if reference is not None:
                images.reference = webp(_fitted(reference, (REFERENCE_SIZE, REFERENCE_SIZE)))
            self.video = _or_none(lambda: VideoReader(self.sample.video_path()))
        else:
            self.video = _or_none(self.read_timeline)
        if self.video is None:
            return images
        seconds = self.video.frame_seconds
        self.start, self.end = seconds[0], seconds[-1] + 1 / self.video.frame_rate
        self.draw_frames()
        _or_none(self.draw_jumps)
        for name, names in self.sample.guidance_names.items():
            track = _or_none(lambda name=name: self.track(name)) if names else None
            if track is not None and not track.kind.on_person:
                _or_none(lambda track=track: self.draw_arrays(track))
        beats = images.metadata.get("beat_seconds")
        if beats is not None:
            self.set_beats(np.asarray(beats, float), "metadata")
        return images

    def track(self, name: str) -> Track:
        """Return the sample's track: one for all drawings, as it keeps what it found out of all its files."""
        if name not in self.tracks:
            self.tracks[name] = self.folder.track(self.sample, name, self.settings.music_feature_fps)
        return self.tracks[name]

    def read_timeline(self) -> Timeline:
        """Return the timeline of a dance; a frame of unknown size is square."""
        tracks = {name: self.track(name) for name in self.settings.channels}
        timeline = read_timeline(self.folder, self.sample, tracks)
        return replace(timeline, size=timeline.size or (1, 1))

    def draw_frames(self) -> None:
        """Draw the strip of tiles, with the key points of all types that have them."""
        seconds, images = self.video.frame_seconds, self.images
        count = min(NUM_TILES, len(seconds))
        middles = self.start + (np.arange(count) + 0.5) * (self.end - self.start) / count
        shown = np.clip(np.searchsorted(seconds, middles, side="right") - 1, 0, len(seconds) - 1)
        images.tile_frames = shown.tolist()
        images.tile_seconds = [float(seconds[frame]) for frame in shown]
        height = round(TILE_WIDTH * self.video.size[0] / self.video.size[1])
        self.size = (max(16, min(height, MAX_TILE_HEIGHT)), TILE_WIDTH)
        images.tile_aspect = self.size[1] / self.size[0]
        images.frames = webp(_side_by_side(self.tiles_of(shown)))

    def draw_jumps(self) -> None:
        """Draw the frames before and at the first jumps; of frames in a row the first one is a jump."""
        first = [frame for frame in self.jumps if frame - 1 not in self.jumps and 0 < frame < len(self.video)]
        self.images.jump_frames = [one for frame in first[: NUM_TILES // 2] for one in (frame - 1, frame)]
        if self.images.jump_frames:
            tiles = self.tiles_of(np.array(self.images.jump_frames))
            blank = np.full((*self.size, 3), 255, np.uint8)  # the page makes every strip equally wide
            self.images.jumps = webp(_side_by_side(tiles + [blank] * (NUM_TILES - len(tiles))))

    def tiles_of(self, shown: np.ndarray) -> list[np.ndarray]:
        """Return a tile for each frame, points of the person drawn over it."""
        tiles = [
            _crossed_out(self.size) if frame is None else _fitted(frame, self.size, exactly=True)
            for frame in self.read_frames(shown)
        ]
        for name in self.settings.channels:
            _or_none(lambda name=name: self.draw_on(tiles, name, shown))
        return tiles

    def read_frames(self, shown: np.ndarray) -> list[np.ndarray | None]:
        if not self.folder.needs_videos:
            return [np.zeros((*self.size, 3), np.uint8) for _ in shown]
        frames = _or_none(lambda: list(self.video.read(shown)))
        if frames is not None:
            return frames
        frames = [_or_none(lambda frame=frame: self.video.read([frame])[0]) for frame in shown]
        self.images.undecodable += [int(n) for n, frame in zip(shown, frames, strict=True) if frame is None]
        return frames

    def draw_on(self, tiles: list[np.ndarray], name: str, shown: np.ndarray) -> None:
        """Draw a type's points of the person over the tiles of the frames shown."""
        track = self.track(name)
        if not track.kind.on_person:
            return
        numbers, read = self.rows_of(track, shown), track.kind.reader(track, self.settings.channels[name])
        rows = [_or_none(lambda number=number: read(number)) for number in numbers]
        known = [row for row in rows if row is not None]
        units = track.kind.units(track, lambda asked: known)  # reading all rows would take too long here
        for place, row in enumerate(rows):
            if row is not None:
                values = track.kind.values(track, numbers[place : place + 1], [row], units, self.video.size)
                tiles[place] = track.kind.draw(values, 0, tiles[place].shape[:2], tiles[place])

    def rows_of(self, track: Track, frames: np.ndarray) -> list[int]:
        """Return the rows of frames; a row that there is not fails to be read, and so is not drawn."""
        if track.fps is None:
            return [int(frame) for frame in frames]
        return [int(np.floor(self.video.frame_seconds[frame] * track.fps + 0.5)) for frame in frames]

    def draw_arrays(self, track: Track) -> None:
        name = track.type_name
        read = track.kind.reader(track, self.settings.channels[name])
        readable = (_or_none(lambda row=row: read(row)) for row in range(track.num_rows))
        first = next(row for row in readable if row is not None)
        if track.kind.has_image or track.kind.is_map(track, first.shape):
            size = (round(TILE_WIDTH / self.images.tile_aspect), TILE_WIDTH)

            def draw(row: int) -> np.ndarray:
                if track.kind.has_image:
                    return track.kind.draw(read(row)[None], 0, size)
                return draw_map(read(row), size)

            rows = self.rows_of(track, np.array(self.images.tile_frames))
            tiles = [_or_none(lambda row=row: draw(row)) for row in rows]
            tiles = [_crossed_out(size) if tile is None else tile for tile in tiles]
            self.images.maps[name] = webp(_side_by_side(tiles))
        else:
            self.draw_features(track, read, len(first))

    def draw_features(self, track: Track, read: Callable, num_features: int) -> None:
        values = np.full((track.num_rows, num_features), np.nan, np.float32)
        for row in range(track.num_rows):
            features = _or_none(lambda row=row: read(row))
            if features is not None:
                values[row] = features.reshape(num_features, -1).mean(1)
        seconds = self.row_seconds(track)
        line = np.stack([self.places(seconds), values[:, 0]], 1)
        heat = webp(_heat(self.columns(seconds, values[:, 1:]))) if num_features > 1 else None
        self.images.graphs.append(FeatureGraph(track.type_name, num_features, thinned(line), heat))
        if track.type_name == "music" and num_features == AIST_WIDTH:
            self.set_beats(seconds[values[:, BEAT_COLUMN] > 0.5], f"feature {BEAT_COLUMN}")

    def row_seconds(self, track: Track) -> np.ndarray:
        """Return the time of each row; rows beyond the last frame go on at the frame rate."""
        numbers = np.arange(track.num_rows)
        if track.fps is not None:
            return numbers / track.fps
        seconds = self.video.frame_seconds[: track.num_rows]
        extra = numbers[len(seconds) :] - len(seconds) + 1
        return np.append(seconds, self.video.frame_seconds[-1] + extra / self.video.frame_rate)

    def places(self, seconds: np.ndarray) -> np.ndarray:
        """Return times in 0..1 of the time axis."""
        return (seconds - self.start) / (self.end - self.start)

    def columns(self, seconds: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Return float [HEAT_COLUMNS, D]: of each column of equal time the nearest row, or rows' mean."""
        edges = np.linspace(self.start, self.end, HEAT_COLUMNS + 1)
        turns = (seconds[:-1] + seconds[1:]) / 2  # from a row to the next
        nearest = np.searchsorted(turns, edges)
        end = seconds[-1] + 1.5 / self.video.frame_rate
        columns = np.full((HEAT_COLUMNS, values.shape[1]), np.nan, np.float32)
        for column in np.flatnonzero(edges[:-1] < end):
            low = nearest[column]
            columns[column] = values[low : max(nearest[column + 1], low + 1)].mean(0)
        return columns

    def set_beats(self, seconds: np.ndarray, source: str) -> None:
        self.images.beats = [round(float(place), 4) for place in self.places(seconds) if 0 <= place <= 1]
        self.images.beat_source = source


def _or_none(read: Callable):
    """Return what read returns; None where it cannot: the report names the fault."""
    try:
        return read()
    except Exception:
        return None


def _heat(values: np.ndarray) -> np.ndarray:
    """Return colours uint8 [D, columns, 3] of values [columns, D], each feature over its own range."""
    absent = np.isnan(values).any(1)
    known = values[~absent] if not absent.all() else np.zeros((1, values.shape[1]))
    low, spread = known.min(0), np.ptp(known, axis=0)
    levels = (np.nan_to_num(values) - low) / np.where(spread > 0, spread, 1)
    levels = np.clip(np.round(255 * levels), 0, 255).astype(np.uint8).T
    colours = cv2.applyColorMap(np.ascontiguousarray(levels), cv2.COLORMAP_VIRIDIS)[..., ::-1].copy()
    colours[:, absent] = UNREAD
    if len(colours) > MAX_HEAT_ROWS:
        colours = resize_image(colours, (MAX_HEAT_ROWS, colours.shape[1]))
    return np.repeat(colours, 3, axis=0)  # a feature is a band, also where a browser smooths the image


def thinned(line: np.ndarray) -> np.ndarray:
    """Return the part of a line [n, 2] on the time axis; of a long one the highest of every few points."""
    line = line[(line[:, 0] >= 0) & (line[:, 0] <= 1)]
    step = -(-len(line) // MAX_LINE_POINTS)
    if step < 2:
        return line
    groups = (line[start : start + step] for start in range(0, len(line), step))
    return np.stack([group[np.argmax(np.nan_to_num(group[:, 1], nan=-np.inf))] for group in groups])


def _fitted(image: np.ndarray, size: tuple[int, int], *, exactly: bool = False) -> np.ndarray:
    """Return the image made as large as fits in (height, width), or of exactly that size."""
    if not exactly:
        scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
        size = tuple(max(1, round(side * scale)) for side in image.shape[:2])
    return cv2.resize(np.ascontiguousarray(image), size[::-1], interpolation=cv2.INTER_AREA)


def _side_by_side(tiles: list[np.ndarray]) -> np.ndarray:
    """Return tiles in a row, with a white line at the right edge of each but the last."""
    for tile in tiles[:-1]:
        tile[:, -2:] = 255
    return np.concatenate(tiles, axis=1)


def _crossed_out(size: tuple[int, int]) -> np.ndarray:
    """Return the tile of a frame that cannot be read."""
    tile = np.full((*size, 3), UNREAD, np.uint8)
    corners = (0, 0), (size[1] - 1, size[0] - 1), (size[1] - 1, 0), (0, size[0] - 1)
    for start, end in (corners[:2], corners[2:]):
        cv2.line(tile, start, end, (200, 40, 40), 2, cv2.LINE_AA)
    return tile


def webp(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", quality=72)
    return buffer.getvalue()
