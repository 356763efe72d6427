"""Synthesised songs for the demo set, and the 35 music features per frame that the demo trains on.

A song is a steady beat under a progression of chords. Both can be heard, both can be read off the features,
and the demo's dancers and stage follow both, so that a model can learn to follow the music.
"""

import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SAMPLE_RATE = 22_050
CHORD_ROOTS = (0, 2, 4, 5, 7, 9)  # semitones above C; one dance move and one floor colour each
BEATS_PER_CHORD = 2
NUM_FEATURES = 35  # AIST++ order: onset strength, 20 MFCC, 12 chroma, onset peak, beat


@dataclass(frozen=True)
class Song:
    """One song: its tempo and its chords, from which sound, features and choreography all follow."""

    beat_seconds: float
    first_beat_seconds: float
    chord_moves: tuple[int, ...]  # index into CHORD_ROOTS, one per BEATS_PER_CHORD beats

    def seconds_since_beat(self, seconds: np.ndarray) -> np.ndarray:
        """Return seconds since the last beat at each time; the beat before the first one counts too."""
        return np.mod(seconds - self.first_beat_seconds, self.beat_seconds)

    def chord_position(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the index of the sounding chord and seconds since it began, at each time."""
        chord_seconds = BEATS_PER_CHORD * self.beat_seconds
        since_start = np.asarray(seconds) - self.first_beat_seconds + chord_seconds  # chord 0 is the pick-up
        index = np.floor_divide(since_start, chord_seconds).astype(int)
        return np.clip(index, 0, len(self.chord_moves) - 1), np.mod(since_start, chord_seconds)

    def beat_times(self, duration_seconds: float) -> np.ndarray:
        """Return the times of all beats before the end, in seconds."""
        return np.arange(self.first_beat_seconds, duration_seconds, self.beat_seconds)


def compose_song(generator: np.random.Generator, duration_seconds: float) -> Song:
    """Return a song of 92 to 138 beats per minute whose neighbouring chords always differ."""
    beat_seconds = 60.0 / generator.uniform(92, 138)
    num_chords = int(duration_seconds / (BEATS_PER_CHORD * beat_seconds)) + 3
    moves = [int(generator.integers(len(CHORD_ROOTS)))]
    while len(moves) < num_chords:
        step = int(generator.integers(1, len(CHORD_ROOTS)))
        moves.append((moves[-1] + step) % len(CHORD_ROOTS))
    return Song(beat_seconds, float(generator.uniform(0, beat_seconds)), tuple(moves))


def synthesise(song: Song, duration_seconds: float, generator: np.random.Generator) -> np.ndarray:
    """Return float32 [N] in [-1, 1] at SAMPLE_RATE: a pad, one kick per beat, a hat between."""
    times = np.arange(int(duration_seconds * SAMPLE_RATE)) / SAMPLE_RATE
    chord, since_chord = song.chord_position(times)
    roots = np.asarray(CHORD_ROOTS)[np.asarray(song.chord_moves)[chord]]
    attack = np.minimum(1.0, since_chord / 0.03)
    sound = np.zeros_like(times)
    for semitones, octave, level in ((0, 3, 0.5), (0, 4, 0.5), (4, 4, 0.3), (7, 4, 0.3)):
        pitch = 440.0 * 2.0 ** ((roots + semitones - 9) / 12 + octave - 4)
        phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
        sound += level * attack * (np.sin(phase) + 0.2 * np.sin(2 * phase))
    since_beat = song.seconds_since_beat(times)
    sweep = 55 * since_beat + 90 * 0.03 * (1 - np.exp(-since_beat / 0.03))
    sound += 1.8 * np.exp(-since_beat / 0.09) * np.sin(2 * np.pi * sweep)
    since_offbeat = np.mod(since_beat + song.beat_seconds / 2, song.beat_seconds)
    sound += 0.25 * np.exp(-since_offbeat / 0.02) * generator.standard_normal(len(times))
    return (0.9 * sound / np.abs(sound).max()).astype(np.float32)


def write_wave(path: Path, sound: np.ndarray) -> None:
    """Write float [N] in [-1, 1] as 16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32_767).astype("<i2").tobytes())


def music_features(sound: np.ndarray, frame_seconds: np.ndarray, beat_times: np.ndarray) -> np.ndarray:
    """Return float32 [F, 35] at the frames' times: onset strength, 20 MFCC, 12 chroma, onset peak, beat.

    All but the beat is measured from the sound; the beat is the synthesiser's own, on the nearest frame.
    """
    fast_seconds = np.arange(0, frame_seconds[-1] + 0.2, 0.0125)
    mel = np.log1p(100 * _spectra(sound, fast_seconds, 1024) @ _mel_filters(1024, 40))
    flux = np.maximum(0, np.diff(mel, axis=0, prepend=mel[:1])).mean(axis=1)
    half_frame = 0.5 * np.median(np.diff(frame_seconds))
    onset = np.array([flux[np.abs(fast_seconds - t) <= half_frame].max() for t in frame_seconds])
    mel = np.log1p(100 * _spectra(sound, frame_seconds, 2048) @ _mel_filters(2048, 40))
    mfcc = mel @ _cosine_basis(40, 20)
    chroma = _spectra(sound, frame_seconds, 4096) @ _chroma_filters(4096)
    chroma /= chroma.max(axis=1, keepdims=True) + 1e-6
    before, after = np.roll(onset, 1), np.roll(onset, -1)
    peak = (onset > before) & (onset >= after) & (onset > onset.mean())
    beat = np.zeros(len(frame_seconds))
    distance = np.abs(frame_seconds[:, None] - beat_times)
    # A beat beyond half a frame after the last one belongs to no frame.
    beat[distance.argmin(axis=0)[distance.min(axis=0) <= half_frame]] = 1
    return np.column_stack([onset, mfcc, chroma, peak, beat]).astype(np.float32)


def _spectra(sound: np.ndarray, seconds: np.ndarray, window: int) -> np.ndarray:
    """Return spectra [T, window / 2 + 1] of windows centred on each time; silence beyond the ends."""
    padded = np.pad(sound, window)
    starts = np.round(seconds * SAMPLE_RATE).astype(int) + window // 2
    frames = padded[np.minimum(starts, len(padded) - window)[:, None] + np.arange(window)]
    return np.abs(np.fft.rfft(frames * np.hanning(window), axis=1)) / window


def _mel_filters(window: int, bands: int) -> np.ndarray:
    """Return triangular mel filters [window / 2 + 1, bands] from 30 Hz to 8 kHz."""
    hertz = np.fft.rfftfreq(window, 1 / SAMPLE_RATE)
    edges = 700 * (10 ** (np.linspace(np.log10(1 + 30 / 700), np.log10(1 + 8000 / 700), bands + 2)) - 1)
    rising = (hertz[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling))


def _chroma_filters(window: int) -> np.ndarray:
    """Return weights from 100 Hz to 2 kHz of the 12 pitch classes: [window / 2 + 1, 12], C first."""
    hertz = np.fft.rfftfreq(window, 1 / SAMPLE_RATE)
    semitone = 12 * np.log2(np.maximum(hertz, 1) / 440.0) + 9
    distance = np.abs(np.mod(semitone[:, None] - np.arange(12) + 6, 12) - 6)
    return np.exp(-0.5 * (distance / 0.4) ** 2) * ((hertz > 100) & (hertz < 2000))[:, None]


def _cosine_basis(bands: int, coefficients: int) -> np.ndarray:
    """Return the DCT-II basis [bands, coefficients], orthonormal but for the first column."""
    position = (np.arange(bands)[:, None] + 0.5) * np.arange(coefficients) * np.pi / bands
    return np.cos(position) * np.sqrt(2 / bands)
