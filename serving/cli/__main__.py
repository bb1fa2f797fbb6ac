"""``python -m serving.cli`` is ``vireo``."""

from serving.cli.main import main

if __name__ == "__main__":
    main()
