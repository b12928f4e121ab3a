//! Runs one child the way PID 1 has to.
