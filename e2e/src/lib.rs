//! Hawser's end-to-end tests: harness and fabrics of real processes
