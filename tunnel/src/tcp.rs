//! Tunnels over TCP: one connection per sealed session, handed off by close_notify.
