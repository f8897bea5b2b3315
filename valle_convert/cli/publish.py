"""`valle-convert publish DIR [OWNER/NAME]`: a folder of quantized files for the hub."""

from pathlib import Path

from valle_convert.cli import console
from valle_convert.cli.options import FORCE, JSON, arg, flag, opt
from valle_convert.errors import EXIT_FAILED_CHECK, EXIT_OK
from valle_convert.wording import listing, plural


def publish(
    *,
    folder: Path = arg("DIR", "The output folder of `quantize` or `merge`."),
    repository: str | None = arg(
        "[OWNER/NAME]",
        "An existing model on the Hugging Face hub. Without it, nothing leaves this machine.",
        None,
    ),
    license_: str | None = opt(
        "Licence of the model: an id of the hub, such as mit, which goes into the card unchecked. "
        "Default: from the files.",
        "ID",
    ),
    base_model: str | None = opt(
        "The model on the hub that was quantized. Default: from the files.", "OWNER/NAME"
    ),
    message: str | None = opt("Message of the commit.", "TEXT"),
    dry_run: bool = flag("Write the card only; send nothing."),
    json_: bool = JSON,
    force: bool = FORCE,
) -> int:
    """Write a model card, and upload it with the files.

    Without OWNER/NAME, nothing is uploaded. The folder is compared with its manifest first. The
    card (README.md) has front matter for the hub, a table of the files with the measurements of
    `evaluate`, a recommendation, how the files were made and verified, how to run them, and
    checksums. After the commit, the hub's digests are compared with the local files.
    """
    from valle_convert.quantize.identity import Identity, check_repository
    from valle_convert.quantize.publish import publish_folder, write_card
    from valle_convert.quantize.release import read_release

    Identity(base_model=base_model)
    if repository is not None:
        check_repository(repository, repository)
    read = read_release(folder)
    failed = [one.path.name for one in read.models if one.report.failures]
    if failed and not force:
        console.error(
            f"{listing(failed, 2)} failed the last `evaluate`; remove the file, or give --force."
        )
        return EXIT_FAILED_CHECK
    card = write_card(read, repository, license_, base_model, force=force)
    console.log(f"wrote {card}")
    if not any(one.report.measured for one in read.models):
        console.notes(["no file was evaluated, so the card gives no quality; run `evaluate`"])
    result = None
    if repository is not None and not dry_run:
        result = publish_folder(read, repository, message=message)
        console.log(f"published {plural(len(result.files), 'file')}: {result.url}")
    elif repository is None:
        console.log("nothing was sent; give OWNER/NAME to publish")
    if json_:
        console.data_json(
            {
                "card": str(card),
                "recommended": best.main.name if (best := read.best()) else None,
                "commit": result.commit if result else None,
                "url": result.url if result else None,
                "files": dict(result.files) if result else {},
            }
        )
    return EXIT_OK
