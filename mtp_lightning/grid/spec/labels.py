"""What the settings of a grid are called: `n_future=4 dim=64`, what varies, by its shortest unambiguous name."""

from collections.abc import Collection, Mapping
from typing import Any

from mtp_lightning.grid.spec.grid_spec import GridSpec
from mtp_lightning.grid.spec.signature import canonical
from mtp_lightning.grid.spec.values import short_names, value_names


def axis_names(spec: GridSpec) -> dict[str, str]:
    """Key -> its shortest dotted ending that no other one shares: axes, then keys that only an `include` sets."""
    return short_names(spec.keys, spec.ancestors)


class Labels:
    def __init__(self, spec: GridSpec) -> None:
        self.axes = spec.axes
        self.names = axis_names(spec)
        values = {key: list(spec.axes.get(key, ())) for key in spec.keys}
        for given in spec.include:
            for key, value in given.items():
                values[key].append(value)
        self.values = {key: value_names(found) for key, found in values.items()}

    def parts(self, values: Mapping[str, Any], without: Collection[str] = ()) -> list[str]:
        """`n_future=4`, `dim=64`: of what varies, and of keys that only an `include` sets."""
        varying = [key for key in values if len(self.values[key]) > 1 or key not in self.axes]
        return [self.part(key, values[key]) for key in varying if key not in without]

    def part(self, key: str, value: object) -> str:
        return f"{self.names[key]}={self.values[key][canonical(value)]}"
