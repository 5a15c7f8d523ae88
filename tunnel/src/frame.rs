//! Length-prefixed frames: two bytes big endian, then at most 16 KiB.
