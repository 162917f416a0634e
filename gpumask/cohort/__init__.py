"""Many runs: configuration, extraction to files, records, processes, and summaries."""
