"""The command line: train, compare, sample, pretrain, search; and the suite, statistics and report behind it."""
