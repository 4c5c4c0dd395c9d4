"""``python -m attrib_batch`` is ``attrib-batch``."""

from attrib_batch.cli import main

if __name__ == "__main__":
    main()
