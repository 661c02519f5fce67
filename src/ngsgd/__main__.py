"""``python -m ngsgd``: the ``ngsgd`` command."""

from ngsgd.faces.cli import main

if __name__ == "__main__":
    main()
