"""Record the runs that lessons show, and write recordings/results.md.

A log ships with the library, in ``grpo_lib/course/recorded``; ``measuring`` says what a part is.
"""

from pathlib import Path

from grpo_lib.course import recorded
from recordings.measuring import Parts

PARTS = Parts("recordings", "Recorded runs", Path(recorded.__file__).parent)

if __name__ == "__main__":
    PARTS.main(__doc__)
