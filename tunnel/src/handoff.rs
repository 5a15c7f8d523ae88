//! The end of a TCP tunnel's outer session, record by record, so that no byte behind close_notify is consumed.
