//! The `process` suite.
