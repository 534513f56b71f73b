"""Reward hacking as a run's own log shows it: detectors, how well they do on runs with a gold measure, and the watch."""
