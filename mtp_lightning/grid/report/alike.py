"""What cells have to share where their numbers are to compare."""

from collections.abc import Mapping, Sequence

from mtp_lightning.grid.report.equal_training import at_text, first_few
from mtp_lightning.grid.report.tuning import Choice
from mtp_lightning.grid.run.state import Result
from mtp_lightning.grid.spec.cells import Cell
from mtp_lightning.grid.spec.grid_spec import At, GridSpec
from mtp_lightning.grid.spec.signature import canonical


def unlike(spec: GridSpec, cells: Sequence[Cell], results: Mapping[str, Result], lengths: bool) -> list[str]:
    """Warnings, where they do not.

    Args:
        results: of the finished cells, by signature.
        lengths: whether they have to be of one length, as they are compared at their end; on a ladder those of a size.
    """
    keys = spec.together(spec.ladder.size) if spec.ladder is not None else ()
    warnings = []
    told = (("data", _fingerprint), ("windows, by how far heads look ahead", _room))
    for what, read in (*told, *([("number of steps", _steps)] if lengths else [])):
        alike: dict[str, dict[str, list[str]]] = {}
        for cell in cells:
            found = read(results[cell.signature]) if cell.signature in results else None
            if found is not None:
                size = canonical([cell.values.get(key) for key in keys]) if read is _steps else ""
                alike.setdefault(size, {}).setdefault(found, []).append(cell.label)
        for labels in alike.values():
            if len(labels) > 1:
                cases = "; ".join(f"{found}: {first_few(names)}" for found, names in labels.items())
                warnings.append(f"the cells differ in their {what}, so their numbers may not compare ({cases})")
    return warnings


def chosen_elsewhere(choices: Sequence[Choice], metric: str, at: At | None) -> list[str]:
    """A warning, where values were tuned at the end of training and are compared before it."""
    if at is None or not choices:
        return []
    return [f"{choices[0].axis} was chosen by {metric} at the end of training, and is compared at {at_text(at)}"]


def _fingerprint(result: Result) -> str | None:
    return result.data_fingerprint


def _room(result: Result) -> str | None:
    return None if result.window_room is None else f"{result.window_room} tokens"


def _steps(result: Result) -> str:
    return str(result.step)
