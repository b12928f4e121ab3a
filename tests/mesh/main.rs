//! The `mesh` suite.
