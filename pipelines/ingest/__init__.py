"""Published benchmarks as records to edit."""
