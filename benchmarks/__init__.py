"""The command line: train, compare, sample, pretrain, search, tables; and suites, statistics and report behind it."""
