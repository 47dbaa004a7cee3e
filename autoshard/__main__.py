"""``python -m autoshard``: the same as the command ``autoshard``."""

from autoshard.cli import main

if __name__ == "__main__":
    main(prog_name="autoshard")
