"""A coverage-guided fuzzer over both protocols: ``make fuzz``. See docs/fuzzing.md."""
