"""Many runs: what is made of them, their records, the processes that share them out, and what sums them up."""
