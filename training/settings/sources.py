"""Where the settings of a run were taken from, for the first lines of a run and for its config.yaml."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sources:
    """The names of the settings that each source decided; a setting named nowhere has its default."""

    flags: Sequence[str] = ()
    yaml: Sequence[str] = ()
    yaml_path: str | None = None
    accelerate: Mapping[str, str] = field(default_factory=dict)  # {setting: "VARIABLE=value"}
    beaten: Sequence[str] = ()  # lines on what accelerate says and does not count

    def lines(self, settings) -> list[str]:
        """Return lines for the user: how many settings come from where, and each one of accelerate's."""
        parts = {"flags": len(self.flags), self.yaml_path: len(self.yaml), "accelerate": len(self.accelerate)}
        counts = [f"{count} from {source}" for source, count in parts.items() if count]
        taken = [
            f"taken from accelerate: {name} {getattr(settings, name)} ({origin})"
            for name, origin in self.accelerate.items()
        ]
        summary = [f"settings: {', '.join([*counts, 'the others are defaults'])}"] if counts else []
        return [*summary, *taken, *self.beaten]

    def comments(self) -> list[str]:
        """Return lines for config.yaml: which settings come from where."""
        taken = [f"{name} ({origin})" for name, origin in self.accelerate.items()]
        parts = {"flags": self.flags, self.yaml_path: self.yaml, "accelerate": taken}
        lines = [f"from {source}: {', '.join(names)}" for source, names in parts.items() if names]
        return [*lines, "the others are defaults"] if lines else []
