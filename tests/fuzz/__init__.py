"""A fuzzer, guided by coverage, over all that comes from outside: ``make fuzz``. See docs/fuzzing.md."""
