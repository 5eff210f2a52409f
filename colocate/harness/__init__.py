"""Run one group under observation and record what was seen."""
