"""What the results of runs say: curves, statistics over seeds and tasks, tables."""
