//! Hawser's trust anchor: root, intermediates, issuer
