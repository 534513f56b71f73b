"""Many runs as one job: in local processes or on a Ray cluster, and their merged results."""
