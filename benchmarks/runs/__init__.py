"""One training run: what it is, its folder, what it records, how it stops and resumes."""
