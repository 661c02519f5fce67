"""``python -m ngsgd``: the ``ngsgd`` command."""

from ngsgd.cli.main import main

if __name__ == "__main__":
    main()
