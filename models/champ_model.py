"""The model by its first name."""

from .champ.champ_model import ChampModel

__all__ = ["ChampModel"]
