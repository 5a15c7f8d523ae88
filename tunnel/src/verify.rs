//! The verifier: pure, time is an argument. See DESIGN section 6 and TRUST.md.
