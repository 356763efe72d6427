"""The demo's data by its first name: `python -m datasets.demo_data --output_dir demo_data`."""

import sys

from demo.data import main

if __name__ == "__main__":
    sys.exit(main())
