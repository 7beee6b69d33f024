"""Compare finished runs: `python report.py logs/sweeps/X logs/runs baseline=reg=none out=report.html`."""

import sys

from cifarlab import signals

if __name__ == "__main__":
    signals.listen()  # before the seconds that all else takes to import

from cifarlab.report.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
