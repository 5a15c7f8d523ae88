//! Tunnels over QUIC: one connection per peer and gateway, one bidirectional stream per sealed session.
