"""What every module uses and no student has to read: checks, files, a trainer's state, threads."""
