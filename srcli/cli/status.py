"""`srcli status`: how far the shards of an output folder are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from srcli.cli.options import REPORT
from srcli.console import counted, print_table, tell
from srcli.errors import escaped
from srcli.remote.urls import is_url, local, parsed
from srcli.shards.status import ShardStatus, status_of

_FAILURES_TOLD = 20


def status(
    output: Annotated[
        str,
        typer.Argument(
            help="Folder of results, also of a store, as given to `srcli upscale` as --output.",
            metavar="OUTPUT",
            show_default=False,
        ),
    ],
    json_: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout in place of the table.", rich_help_panel=REPORT)
    ] = False,
) -> None:
    """Tell how far the shards of a folder are: done, failed and missing photos.

    It reads what the shards' runs have written so far and looks for their
    results, so it can be asked at any time. The exit code is 0 where all is
    done, and 1 where photos are missing or have failed.

    Example: srcli status ~/photos-x4
    """
    shards = _status_at_store(output) if is_url(local(output)) else status_of(Path(local(output)))
    if json_:
        typer.echo(json.dumps(_as_dict(shards)))
    else:
        _show(shards)
    raise typer.Exit(0 if all(each.complete for each in shards) else 1)


def _status_at_store(output: str) -> list[ShardStatus]:
    from srcli.remote.ledger import status_at

    return status_at(parsed(output))


def _as_dict(shards: Sequence[ShardStatus]) -> dict[str, Any]:
    return {
        "planned": sum(each.planned or 0 for each in shards),
        "done": sum(each.done for each in shards),
        "failed": sum(len(each.failed) for each in shards),
        "missing": sum(each.missing for each in shards),
        "not_begun": sum(not each.begun for each in shards),
        "not_listed": sum(each.begun and each.planned is None for each in shards),
        "settings": sorted({each.made_with for each in shards if each.begun}),
        "shards": [each.as_dict() for each in shards],
    }


def _show(shards: Sequence[ShardStatus]) -> None:
    """Shards that are done are told by their number, the others each."""
    open_ = [each for each in shards if not each.complete]
    if open_:
        table = Table(*("shard", "planned", "done", "failed", "missing"), box=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for each in open_:
            listed = each.planned is not None
            counts = (each.planned if listed else "not listed", each.done, len(each.failed), each.missing if listed else "")
            table.add_row(str(each.shard), *(map(str, counts) if each.begun else ("not begun", "", "", "")))
        print_table(table)
    failures = [failure for each in shards for failure in each.failed]
    for failure in failures[:_FAILURES_TOLD]:
        tell(f"`{escaped(failure['input'])}` failed: {escaped(failure['reason'])}")
    if len(failures) > _FAILURES_TOLD:
        tell(f"and {counted(len(failures) - _FAILURES_TOLD, 'failure')} more, which `--json` names")
    if len({each.made_with for each in shards if each.begun}) > 1:
        tell("the shards were not all made with the same settings; `--json` tells which by `made_with`")
    tell(_line(shards))


def _line(shards: Sequence[ShardStatus]) -> str:
    """`912 of 1000 photos done, 3 failed, 85 missing; 38 of 40 shards begun, 30 done`."""
    told = _as_dict(shards)
    failed = f"{told['failed']} failed"
    if told["not_listed"] == len(shards) - told["not_begun"] > 0:  # how many there are is not known of any
        line = f"{counted(told['done'], 'photo')} done, {failed}; how many there are is known when all are listed"
    else:
        line = f"{told['done']} of {counted(told['planned'], 'photo')} done, {failed}, {told['missing']} missing"
    begun, complete = len(shards) - told["not_begun"], sum(each.complete for each in shards)
    listed = f" ({told['not_listed']} not fully listed)" if told["not_listed"] else ""
    return line if len(shards) == 1 else f"{line}; {begun} of {len(shards)} shards begun{listed}, {complete} done"
