"""The command line: train, compare, sample, pretrain, search, tables; and the suites, statistics and report behind it."""
