"""`valle-convert publish DIR [OWNER/NAME]`: a folder of quantized files for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from valle_convert.cli import console
from valle_convert.cli.options import ForceOption, JsonOption, refuse_idle


def register(app: typer.Typer) -> None:
    app.command("publish")(publish)


def publish(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="What `quantize` wrote."),
    ],
    repository: Annotated[
        str | None,
        typer.Argument(
            metavar="[OWNER/NAME]",
            help="A model on the Hugging Face hub, which is there already. Without it, nothing "
            "leaves this machine.",
        ),
    ] = None,
    license_: Annotated[
        str | None,
        typer.Option("--license", help="Of the model, an SPDX word."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            metavar="OWNER/NAME",
            help="The model on the hub that was quantized. Without it, what the files say.",
        ),
    ] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the card only; send nothing.")
    ] = False,
    json_: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Write the card of a folder, and with a repository's name, commit both to the hub.

    The folder is compared with its manifest first. The card (README.md) has the front matter that
    the hub reads, a table of the files with what `evaluate` measured, which one to take, how they
    were made and verified, how to run them, and checksums. After the one commit, the hub's digests
    are compared with those here.
    """
    from valle_convert.errors import EXIT_FAILED_CHECK, InputError
    from valle_convert.files import check_outputs, write_text_atomically
    from valle_convert.quantize.identity import Identity, check_repository
    from valle_convert.quantize.publish import CARD, card_of, files_of, publish_folder
    from valle_convert.quantize.release import read_release
    from valle_convert.wording import listing, plural

    Identity(base_model=base_model)
    if repository is not None:
        check_repository(repository, repository)
    else:
        refuse_idle("no OWNER/NAME is given", {"--message": message})
    read = read_release(folder)
    failed = [one.path.name for one in read.models if one.report.faults]
    if failed and not force:
        console.error(
            f"{listing(failed, 2)} failed the last `evaluate`; leave it out, or give --force."
        )
        raise typer.Exit(EXIT_FAILED_CHECK)
    text = card_of(read, repository, license_, base_model)
    path = folder / CARD
    inputs = [one for name, one in files_of(read).items() if name != CARD]
    check_outputs([path], force=True, inputs=inputs)
    old = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if old is not None and old != text and not force:
        raise InputError(
            f"{path} is there and is another card; give --force to write it anew, or edit and keep "
            "it by publishing with `hf upload`."
        )
    if old != text:
        write_text_atomically(path, text, force=True)
    console.log(f"wrote {path}")
    result = None
    if repository is not None and not dry_run:
        result = publish_folder(read, repository, message=message)
        console.log(f"published {plural(len(result.files), 'file')}: {result.url}")
    elif repository is None:
        console.log("nothing was sent; give OWNER/NAME to publish")
    if json_:
        console.data_json(
            {
                "card": str(path),
                "recommended": best.main.name if (best := read.best()) else None,
                "commit": result.commit if result else None,
                "url": result.url if result else None,
                "files": dict(result.files) if result else {},
            }
        )
