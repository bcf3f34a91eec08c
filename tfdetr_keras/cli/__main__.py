"""`python -m tfdetr_keras.cli`, the same as `tfdetr`."""

import sys

from tfdetr_keras.cli import main

sys.exit(main())
