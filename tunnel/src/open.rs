//! What a dialler asks of a gateway, and what it is told.

use hawser_api::ServicePort;

/// A validated `Open`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRequest {
    /// The exported service port.
    pub target: ServicePort,
    /// This endpoint or none.
    pub endpoint: Option<String>,
    /// Endpoint ids not to choose while there is any other; at most 16 of at most 64 bytes.
    pub avoid: Vec<String>,
    /// W3C trace context, or empty; at most 64 bytes.
    pub traceparent: String,
}

impl OpenRequest {
    /// Any endpoint of this service port.
    pub fn any(target: ServicePort) -> Self {
        Self { target, endpoint: None, avoid: Vec::new(), traceparent: String::new() }
    }
}

/// A gateway's yes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedAnswer {
    /// Opaque id of the endpoint that was chosen; at most 64 bytes.
    pub endpoint: String,
    /// How many are ready behind this gateway.
    pub endpoints_ready: u32,
}
