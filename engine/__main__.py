"""`cloudcode`, also as `python -P -m engine`."""

from engine.cli.app import build


def main() -> None:
    """Run the command line; its exit code is not 0 when anything failed."""
    build()(prog_name="cloudcode")


if __name__ == "__main__":
    main()
