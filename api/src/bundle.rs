//! A trust domain's anchors as a SPIFFE JWKS document (SPIFFE Trust Domain and Bundle, sections 4 and 5).

/// The anchors of one trust domain. The document does not name the trust domain: keep it beside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// `spiffe_sequence`: grows with every change of content.
    pub sequence: u64,
    /// `spiffe_refresh_hint` in seconds.
    pub refresh_hint: Option<u32>,
    /// X.509 authorities, DER, not checked here. Empty: trust nobody.
    pub x509_authorities: Vec<Vec<u8>>,
}

/// Why a document is not a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bundle: {0}")]
pub struct BundleError(pub String);

impl Bundle {
    /// Reads a JWKS document.
    pub fn parse(_document: &str) -> Result<Self, BundleError> {
        unimplemented!()
    }

    /// Writes a JWKS document, the same bytes for the same value.
    pub fn to_document(&self) -> String {
        unimplemented!()
    }
}
