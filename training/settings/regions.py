"""--region_weights: which regions of the frames the loss weighs, and whether the data show where they are."""

import math
from collections.abc import Mapping, Sequence

from datasets.body.regions import REGIONS, counts_with, type_of_person
from system.command_line import nearest
from system.errors import ConfigError

from .fields import ObjectiveSettings


def region_weights_of(settings: ObjectiveSettings) -> dict[str, float]:
    """Return {region: weight} of --region_weights. Raises ConfigError."""
    weights = {}
    for text in settings.region_weights:
        region, _, value = text.partition("=")
        if region not in REGIONS:
            known = ", ".join(f"{name}=WEIGHT" for name in REGIONS)
            raise ConfigError(f"--region_weights {text}: expected {known}{nearest(region, REGIONS)}")
        if region in weights:
            raise ConfigError(f"--region_weights: {region} is given twice")
        try:
            weights[region] = float(value)
        except ValueError:
            weights[region] = math.nan
        if not 0 <= weights[region] < math.inf:
            raise ConfigError(f"--region_weights {text}: the weight must be a number, at least 0")
    return weights


def check_regions(weights: Mapping[str, float], shapes: Mapping[str, Sequence[int]]) -> None:
    """Raise ConfigError where the guidance does not show where a region is.

    shapes: {type: shape of one frame's condition}, as GuidanceDataset has them.
    """
    name = type_of_person(shapes)
    for region, weight in weights.items():
        counts = " or ".join(map(str, counts_with(region)))
        flag = f"--region_weights {region}={weight:g}"
        if name is None:
            raise ConfigError(
                f"{flag}: no guidance type has the person's key points, which show the {region}: add pose to "
                f"--guidance_types, of {counts} points (--guidance_input_channels)"
            )
        if shapes[name][0] not in counts_with(region):
            raise ConfigError(
                f"{flag}: {shapes[name][0]} key points of {name} do not show the {region}, {counts} do: "
                f"detect them again, as prepare_guidance.py does, or leave {region} out"
            )
