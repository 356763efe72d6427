"""report.html: how good an evaluation's clips are, against floors, and its worst and best ones to play.

The page holds all that it shows and needs no network. Its only script is page's own, named by its digest:
what comes from file names and files is escaped, and could not run.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2

from datasets.report.page import page_templates
from evaluation.floors import FLOORS
from system.errors import DataError
from system.whole_files import whole_file

from .curves import MAX_OPEN, Timeline, make_timeline
from .kept import Evaluation, read_clip, read_evaluation
from .numbers import decimals_of, direction, floor_strips, interval, is_known, number
from .players import Player, PlayerSource, make_player
from .table import meaning_of

REPORT_NAME = "report.html"
NUM_PLAYERS = 5  # of the worst clips, and as many of the best
RANKED_BY = ("lpips", "psnr", "ssim", "l1")  # the first that clips have values of
MAX_LISTED = 1000  # clips in the page's last table; metrics.json has all


@dataclass
class Card:
    """A clip with a section of its own."""

    sample_id: str
    words: str  # "worst 1 of 24"
    anchor: str
    values: dict[str, float | None]
    timeline: Timeline | None = None
    player: Player | None = None
    problem: str = ""  # why there is no player


def write_report(
    eval_dir: str | Path,
    open_clip: Callable[[str], PlayerSource],
    *,
    ranked_by: str = "",
) -> Path:
    """Write EVAL/report.html from EVAL/metrics.json and EVAL/clips; return its path.

    open_clip: clip -> what its player is made from; a clip of which it raises DataError has none, and the
    page says why. ranked_by: the metric by which clips are the worst and the best.
    """
    evaluation = read_evaluation(eval_dir)
    ranking = rank_clips(evaluation, ranked_by)
    cards = [make_card(eval_dir, evaluation, ranking, place) for place in ranking.shown]
    for card in cards:
        add_player(card, open_clip, ranking.metric)
    page = templates().get_template("report.html").render(
        title=str(eval_dir), evaluation=evaluation, ranking=ranking, cards=cards,
        strips=floor_strips(evaluation), measured=measured(evaluation),
        meanings={name: meaning_of(name) for name in evaluation.metrics} | FLOORS,
        anchors={card.sample_id: card.anchor for card in cards}, max_listed=MAX_LISTED, max_open=MAX_OPEN,
        videos_kept=(Path(eval_dir) / "videos").is_dir(),
        player_bytes=sum(len(card.player.video) for card in cards if card.player),
    )  # fmt: skip
    path = Path(eval_dir) / REPORT_NAME
    with whole_file(path) as aside:
        aside.write_text(page, encoding="utf-8")
    return path


# ---- which clips ----


@dataclass
class Ranking:
    """Clips from the worst to the best by a metric; those without a value of it come last."""

    metric: str
    clips: list[str]
    num_ranked: int

    @property
    def shown(self) -> list[int]:
        """Places of the clips with a section of their own, the worst first."""
        if len(self.clips) <= 2 * NUM_PLAYERS:
            return list(range(len(self.clips)))
        last = max(self.num_ranked, 2 * NUM_PLAYERS) - 1  # each once, where few have a value
        return [*range(NUM_PLAYERS), *range(last, last - NUM_PLAYERS, -1)]

    def words(self, place: int) -> str:
        if len(self.clips) < 2:
            return ""
        if place >= self.num_ranked:
            return f"no {self.metric}" if self.metric else ""
        if place >= self.num_ranked - NUM_PLAYERS and place >= self.num_ranked / 2:
            return f"best {self.num_ranked - place} of {self.num_ranked}"
        return f"worst {place + 1} of {self.num_ranked}"


def rank_clips(evaluation: Evaluation, metric: str = "") -> Ranking:
    """Return the clips from worst to best by `metric`, or by the first of RANKED_BY that clips have."""
    names = [metric] if metric else [*RANKED_BY, *evaluation.metrics]
    metric = next((name for name in names if name in measured(evaluation)), "")
    values = {clip: found.get(metric) for clip, found in evaluation.samples.items()}
    known = [clip for clip in values if is_known(values[clip])]
    sign = -1 if metric and evaluation.metrics[metric].higher_is_better is False else 1
    known.sort(key=lambda clip: (sign * values[clip], clip))
    return Ranking(metric, known + sorted(values.keys() - set(known)), len(known))


def measured(evaluation: Evaluation) -> set[str]:
    """Return the metrics that clips have values of, and not only all clips together."""
    samples = evaluation.samples.values()
    return {name for name in evaluation.metrics if any(is_known(values.get(name)) for values in samples)}


def make_card(eval_dir: str | Path, evaluation: Evaluation, ranking: Ranking, place: int) -> Card:
    clip = ranking.clips[place]
    card = Card(clip, ranking.words(place), f"clip-{place}", evaluation.samples[clip])
    kept = read_clip(eval_dir, clip)
    if kept is not None and kept.num_frames:
        card.timeline = make_timeline(kept, evaluation.metrics, ranking.metric)
    return card


def add_player(card: Card, open_clip: Callable[[str], PlayerSource], metric: str) -> None:
    """Give a card its player, at the clip's worst frame by the metric where the clip is too long for it."""
    curves = card.timeline.curves if card.timeline else []
    around = next((curve.extreme_frame for curve in curves if curve.name == metric), 0)
    try:
        card.player = make_player(open_clip(card.sample_id), around)
    except DataError as error:
        card.problem = str(error)


# ---- the templates ----


def templates() -> jinja2.Environment:
    """Return the templates of this folder, with all filters that they and the data report's use."""
    found = page_templates(Path(__file__).parent)
    filters = {"decimals": decimals_of, "size": in_bytes}
    found.filters |= filters | {one.__name__: one for one in (number, direction, video_source, plain)}
    script = found.get_template("evaluation.js").render()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    found.globals |= {"interval": interval, "script_digest": digest}
    return found


def video_source(video: bytes) -> str:
    return "data:video/mp4;base64," + base64.b64encode(video).decode()


def in_bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def plain(value: object) -> str:
    """Return a value of the protocol in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
