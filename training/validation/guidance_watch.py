"""Notices guidance that a model does not learn to use, and says what to try."""

from collections import Counter

NEAR_ZERO = 0.01  # of the loss: less than this is no use made of a guidance
PATIENCE = 5  # validations in a row

ADVICE = (
    "see in samples/ whether its column goes with the ground truth in time (--music_feature_fps, meta.json); "
    "raise the --guidance_dropout of the other types, so that this one is needed; train longer, or with a "
    "higher --learning_rate; add videos of more variety"
)
REFERENCE_ADVICE = (
    "lower --reference_dropout; train longer; see that each reference image shows the person of its video, "
    "and that the videos show different people"
)


class GuidanceWatch:
    """Counts, for each guidance type and the reference, the validations in a row that show no use of it.

    The count starts anew when a run is resumed.
    """

    def __init__(self, patience: int = PATIENCE):
        self.patience = patience
        self.unused = Counter()

    def look(self, scalars: dict[str, float]) -> list[str]:
        """Return a line for each guidance that has now been unused for `patience` validations.

        `scalars` are a validation's. Where one type says everything, another may rightly add nothing: a type
        counts as used, too, when it is used with all others left out (guidance_gap_alone).
        """
        lines = []
        for tag, gap in scalars.items():
            kind, _, name = tag.partition("/")
            if kind != "guidance_gap":
                continue
            used = max(gap, scalars.get(f"guidance_gap_alone/{name}", gap)) >= NEAR_ZERO
            self.unused[name] = 0 if used else self.unused[name] + 1
            if self.unused[name] == self.patience:
                advice = REFERENCE_ADVICE if name == "reference" else ADVICE
                lines.append(
                    f"warning: the model does not use {name}: {tag} was below {NEAR_ZERO:.0%} in "
                    f"{self.patience} validations in a row. What to try: {advice}"
                )
        return lines
