"""What people run: the command line, evaluation, reports and benchmarks."""
