"""From a row to a restorer: the one place where a family's name becomes a module."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from srcli.errors import ModelError
from srcli.models.spec import ModelSpec, known_families

if TYPE_CHECKING:
    from srcli.models.base import LoadOptions, Restorer


def load_restorer(spec: ModelSpec, options: LoadOptions) -> Restorer:
    """Load the model of a row, by the `load` of its family's module.

    Args:
        spec: the row.
        options: device, precision and what else the loader may be told.

    Raises:
        ModelError: the family is unknown, or the model's files are missing, damaged or do not fit together.
    """
    if spec.family not in known_families():
        raise ModelError(
            f"unknown family `{spec.family}` of model `{spec.name}`",
            f"the families are {', '.join(f'`{family}`' for family in known_families())}",
        )
    module = importlib.import_module(f"srcli.models.{spec.family}")
    return cast("Restorer", module.load(spec, options))
