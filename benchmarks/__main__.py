"""Measure how fast things are, and write benchmarks/results.md.

``recordings.measuring`` says what a part is, and does the work.
"""

from recordings.measuring import Parts

PARTS = Parts("benchmarks", "Speed")

if __name__ == "__main__":
    PARTS.main(__doc__)
