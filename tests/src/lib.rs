//! Support for the tests: real programs started, watched and ended.
