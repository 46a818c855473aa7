"""The command `milkrun`: `_commands` if its libraries are installed, else one line that says how to get them."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from milkrun import _commands
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit('The milkrun command needs typer and rich: pip install "milkrun[cli]"')
    _commands.main()
