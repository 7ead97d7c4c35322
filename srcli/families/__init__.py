"""The methods: a folder each in here, and nothing else is a list of them.

A family's folder has `__init__.py` with its light declaration `FAMILY`; `restorer.py`; where it trains, `trainee.py`; and where
its authors' checkpoints can be imported, `reference.py`. This file imports none of them before it is asked for one by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, cast

from srcli.errors import ModelError

if TYPE_CHECKING:
    from srcli.protocol import LoadOptions, Restorer
    from srcli.rows.spec import ModelSpec


def known_families() -> tuple[str, ...]:
    """The names of the folders in here. Imports none of them."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg))


def load_restorer(spec: ModelSpec, options: LoadOptions) -> Restorer:
    """Load the model of a row, by its family's `restorer.load`.

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
    module = importlib.import_module(f"srcli.families.{spec.family}.restorer")
    return cast("Restorer", module.load(spec, options))
