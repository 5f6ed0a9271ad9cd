"""The benchmarks, one file each: rows -> prompts, completion -> program, outcome -> score. No torch."""
