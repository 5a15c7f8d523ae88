//! Hawser's gateway: listen, admit, route, dial, carry
