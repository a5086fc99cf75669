"""Makes the logs that lessons show, a file each: ``python -m recordings NAME``."""
