"""`python -m tfdetr_keras`, the same as `tfdetr`."""

import sys

from tfdetr_keras.cli import main

if __name__ == "__main__":
    sys.exit(main())
