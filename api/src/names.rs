//! Names, validated once where they enter.
//!
//! What flows in is text from users, peers and certificates; what flows out are values that need no second check.
//! Labels follow RFC 1123 section 2.1 as Kubernetes applies it; SPIFFE IDs follow SPIFFE-ID sections 2.1 to 2.3.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not the name that it should be. The message names the rule that was broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {rule}")]
pub struct NameError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl NameError {
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        // A hostile name may be megabytes long; the message stays readable.
        let value = value.chars().take(80).collect();
        Self { what, value, rule }
    }

    /// For an ID that should have been of another trust domain.
    pub(crate) fn foreign(id: &str) -> Self {
        Self::new("SPIFFE ID", id, "is not of this cluster's own trust domain")
    }

    /// The rule that was broken, without the value: safe as a metric label.
    pub fn rule(&self) -> &'static str {
        self.rule
    }
}

/// Longest DNS label (RFC 1035 section 2.3.4), in bytes.
pub const LABEL_MAX: usize = 63;
/// Longest SPIFFE ID, in bytes (SPIFFE-ID section 2.3).
pub const SPIFFE_ID_MAX: usize = 2048;
/// Longest trust domain name, in bytes (SPIFFE-ID section 2.3).
pub const TRUST_DOMAIN_MAX: usize = 255;

fn check_label(what: &'static str, text: &str) -> Result<(), NameError> {
    let fail = |rule| Err(NameError::new(what, text, rule));
    if text.is_empty() {
        return fail("is empty");
    }
    if text.len() > LABEL_MAX {
        return fail("is longer than 63 characters");
    }
    if !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        return fail("may contain only lower-case letters, digits and '-'");
    }
    if text.starts_with('-') || text.ends_with('-') {
        return fail("must start and end with a letter or digit");
    }
    Ok(())
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_label($what, text)?;
                Ok(Self(text.into()))
            }
        }

        text_value!($name);
    };
}

/// Display, Debug, Serialize and Deserialize by way of `as_str` and `FromStr`.
macro_rules! text_value {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                self.as_str()
            }
        }
        impl TryFrom<&str> for $name {
            type Error = NameError;
            fn try_from(text: &str) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

label!(
    /// A cluster as its peers call it: one DNS label.
    ClusterName,
    "cluster name"
);
label!(
    /// A namespace: one DNS label.
    Namespace,
    "namespace"
);
label!(
    /// A service: one DNS label.
    ServiceName,
    "service name"
);

/// A service within one cluster. Written `namespace/name`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: Namespace,
    /// The name within the namespace.
    pub name: ServiceName,
}

impl ServiceKey {
    /// From unchecked texts, such as a peer's.
    pub fn parse(namespace: &str, name: &str) -> Result<Self, NameError> {
        Ok(Self { namespace: namespace.parse()?, name: name.parse()? })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for ServiceKey {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, name) =
            text.split_once('/').ok_or_else(|| NameError::new("service", text, "must be written namespace/name"))?;
        Self::parse(namespace, name)
    }
}

/// One port of one service. Written `namespace/name:port`; this is what a stream inside a sealed session names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ServicePort {
    /// The service.
    pub service: ServiceKey,
    /// The service's port number (not the target port), 1 to 65535.
    pub port: u16,
}

impl ServicePort {
    /// From unchecked values, such as a peer's `Open`.
    pub fn parse(namespace: &str, name: &str, port: u32) -> Result<Self, NameError> {
        let number = u16::try_from(port).ok().filter(|p| *p != 0);
        let port = number.ok_or_else(|| NameError::new("port", &port.to_string(), "must be 1 to 65535"))?;
        Ok(Self { service: ServiceKey::parse(namespace, name)?, port })
    }
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

impl FromStr for ServicePort {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |rule| NameError::new("service port", text, rule);
        let (service, port) = text.split_once(':').ok_or_else(|| bad("must be written namespace/name:port"))?;
        // `u16::from_str` accepts "+80" and "080": two spellings of one port are one too many.
        if port.starts_with(['+', '0']) {
            return Err(bad("has a port that is not a plain decimal number from 1 to 65535"));
        }
        let port = port.parse().map_err(|_| bad("has a port that is not a plain decimal number from 1 to 65535"))?;
        Ok(Self { service: service.parse()?, port })
    }
}

/// A SPIFFE trust domain, always lower case: `east.example.org`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The name as text, lower case, without scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own SPIFFE ID, without a path: `spiffe://east.example.org`.
    pub fn id(&self) -> String {
        format!("spiffe://{}", self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let fail = |rule| Err(NameError::new("trust domain", text, rule));
        if text.is_empty() {
            return fail("is empty");
        }
        if text.len() > TRUST_DOMAIN_MAX {
            return fail("is longer than 255 bytes");
        }
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return fail("may contain only letters, digits, '.', '-' and '_'");
        }
        Ok(Self(text.to_ascii_lowercase().into()))
    }
}

text_value!(TrustDomain);

/// A workload's SPIFFE ID: scheme, trust domain and a path that is not empty.
///
/// Kept in canonical form (scheme and trust domain in lower case, path as it came), so that equality is byte equality.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    // Where the path's first '/' stands in `text`.
    path_at: usize,
}

impl SpiffeId {
    /// The ID that Kubernetes and Istio users expect for a service account.
    pub fn service_account(domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, NameError> {
        // One segment each: a name with a slash would be somebody else's ID.
        if let Some(name) = [namespace, account].into_iter().find(|name| name.contains('/')) {
            return Err(NameError::new("name", name, "may not contain '/'"));
        }
        format!("spiffe://{domain}/ns/{namespace}/sa/{account}").parse()
    }

    /// The ID as text, canonical.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path with its leading '/'.
    pub fn path(&self) -> &str {
        self.text.get(self.path_at..).unwrap_or_default()
    }

    /// The trust domain that issued it.
    pub fn trust_domain(&self) -> TrustDomain {
        let start = SCHEME.len();
        TrustDomain(self.text.get(start..self.path_at).unwrap_or_default().into())
    }
}

const SCHEME: &str = "spiffe://";

fn check_path(text: &str, path: &str) -> Result<(), NameError> {
    let fail = |rule| Err(NameError::new("SPIFFE ID", text, rule));
    for segment in path.split('/').skip(1) {
        if segment.is_empty() {
            return fail("has an empty path segment or a trailing '/'");
        }
        if segment == "." || segment == ".." {
            return fail("has a '.' or '..' path segment");
        }
        if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
            return fail("may contain only letters, digits, '.', '-' and '_' in its path");
        }
    }
    Ok(())
}

impl FromStr for SpiffeId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let fail = |rule| Err(NameError::new("SPIFFE ID", text, rule));
        if text.len() > SPIFFE_ID_MAX {
            return fail("is longer than 2048 bytes");
        }
        let Some((scheme, rest)) = text.split_at_checked(SCHEME.len()) else {
            return fail("must start with spiffe://");
        };
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return fail("must start with spiffe://");
        }
        let Some(slash) = rest.find('/') else {
            return fail("has no path: it names a trust domain, not a workload");
        };
        let (domain, path) = rest.split_at(slash);
        let domain: TrustDomain = domain.parse()?;
        check_path(text, path)?;
        let path_at = SCHEME.len() + domain.as_str().len();
        Ok(Self { text: format!("{SCHEME}{domain}{path}").into(), path_at })
    }
}

text_value!(SpiffeId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_kept_in_canonical_form() {
        let id: SpiffeId = "SPIFFE://East.Example.ORG/ns/Shop/sa/checkout".parse().unwrap();
        assert_eq!(id.as_str(), "spiffe://east.example.org/ns/Shop/sa/checkout");
        assert_eq!(id.trust_domain().as_str(), "east.example.org");
        assert_eq!(id.path(), "/ns/Shop/sa/checkout");
    }

    /// SPIFFE-ID section 2, a line each: what is written, and its canonical form or the rule that it breaks.
    #[test]
    #[expect(clippy::too_many_lines, reason = "a table, a line each")]
    fn spiffe_ids_are_what_the_standard_says() {
        const HOST: &str = "may contain only letters, digits, '.', '-' and '_'";
        const PATH: &str = "may contain only letters, digits, '.', '-' and '_' in its path";
        const SCHEME: &str = "must start with spiffe://";
        const SEGMENT: &str = "has an empty path segment or a trailing '/'";
        const DOTS: &str = "has a '.' or '..' path segment";
        const NO_PATH: &str = "has no path: it names a trust domain, not a workload";
        let rows: &[(&str, Result<&str, &str>)] = &[
            // 2: the scheme, in any case; written in lower case.
            ("spiffe://east/a", Ok("spiffe://east/a")),
            ("SPIFFE://east/a", Ok("spiffe://east/a")),
            ("SpIfFe://east/a", Ok("spiffe://east/a")),
            ("", Err(SCHEME)),
            ("spiffe", Err(SCHEME)),
            ("spiffe:", Err(SCHEME)),
            ("spiffe:/east/a", Err(SCHEME)),
            ("spiffe:east/a", Err(SCHEME)),
            ("//east/a", Err(SCHEME)),
            ("east/a", Err(SCHEME)),
            ("https://east/a", Err(SCHEME)),
            ("spiffes://east/a", Err(SCHEME)),
            (" spiffe://east/a", Err(SCHEME)),
            ("spiffe:\\\\east\\a", Err(SCHEME)),
            // 2.1: the trust domain is a host and nothing else, in any case; written in lower case.
            ("spiffe://East.Example.ORG/a", Ok("spiffe://east.example.org/a")),
            ("spiffe://a_b-c.9/a", Ok("spiffe://a_b-c.9/a")),
            ("spiffe://127.0.0.1/a", Ok("spiffe://127.0.0.1/a")),
            ("spiffe://east.example.evil/a", Ok("spiffe://east.example.evil/a")),
            ("spiffe:///a", Err("is empty")),
            ("spiffe://user@east/a", Err(HOST)),
            ("spiffe://user:word@east/a", Err(HOST)),
            ("spiffe://east:443/a", Err(HOST)),
            ("spiffe://east:/a", Err(HOST)),
            ("spiffe://[::1]/a", Err(HOST)),
            ("spiffe://e%61st/a", Err(HOST)),
            ("spiffe://ea st/a", Err(HOST)),
            ("spiffe://*.example/a", Err(HOST)),
            ("spiffe://east\0/a", Err(HOST)),
            ("spiffe://öst/a", Err(HOST)),
            ("spiffe://ｅast/a", Err(HOST)),
            // 2.2: the path is not empty here, its segments neither, and its case counts.
            ("spiffe://east/ns/Shop/sa/Checkout", Ok("spiffe://east/ns/Shop/sa/Checkout")),
            ("spiffe://east/a.b_c-d/9", Ok("spiffe://east/a.b_c-d/9")),
            ("spiffe://east/...", Ok("spiffe://east/...")),
            ("spiffe://east/.a/b.", Ok("spiffe://east/.a/b.")),
            ("spiffe://east", Err(NO_PATH)),
            ("spiffe://", Err(NO_PATH)),
            ("spiffe://east?a", Err(NO_PATH)),
            ("spiffe://east#a", Err(NO_PATH)),
            ("spiffe://east/", Err(SEGMENT)),
            ("spiffe://east//a", Err(SEGMENT)),
            ("spiffe://east/a//b", Err(SEGMENT)),
            ("spiffe://east/a/", Err(SEGMENT)),
            ("spiffe://east/.", Err(DOTS)),
            ("spiffe://east/./a", Err(DOTS)),
            ("spiffe://east/a/..", Err(DOTS)),
            ("spiffe://east/../a", Err(DOTS)),
            ("spiffe://east/a%2e%2e", Err(PATH)),
            ("spiffe://east/%2e%2e/a", Err(PATH)),
            ("spiffe://east/a%20b", Err(PATH)),
            ("spiffe://east/a%", Err(PATH)),
            ("spiffe://east/a b", Err(PATH)),
            ("spiffe://east/a\n", Err(PATH)),
            ("spiffe://east/a\0", Err(PATH)),
            ("spiffe://east/a:b", Err(PATH)),
            ("spiffe://east/a@b", Err(PATH)),
            ("spiffe://east/a*", Err(PATH)),
            ("spiffe://east/a;b", Err(PATH)),
            ("spiffe://east/a\\b", Err(PATH)),
            ("spiffe://east/ä", Err(PATH)),
            ("spiffe://east/ａ", Err(PATH)),
            // 2.2: neither query nor fragment.
            ("spiffe://east/a?", Err(PATH)),
            ("spiffe://east/a?b=c", Err(PATH)),
            ("spiffe://east/a#", Err(PATH)),
            ("spiffe://east/a#b", Err(PATH)),
        ];
        for (text, must) in rows {
            let read = text.parse::<SpiffeId>();
            let read = read.as_ref().map(SpiffeId::as_str).map_err(NameError::rule);
            assert_eq!(read, *must, "{text:?}");
        }
    }

    /// SPIFFE-ID section 2.3: 2048 bytes in all, 255 of them for the trust domain, and not one more.
    #[test]
    fn spiffe_ids_are_as_long_as_the_standard_says() {
        let id = |length: usize| format!("spiffe://east/{}", "a".repeat(length - "spiffe://east/".len()));
        assert_eq!(id(SPIFFE_ID_MAX).parse::<SpiffeId>().unwrap().as_str().len(), 2048);
        assert_eq!(id(SPIFFE_ID_MAX + 1).parse::<SpiffeId>().unwrap_err().rule(), "is longer than 2048 bytes");
        let long = "d".repeat(TRUST_DOMAIN_MAX);
        assert!(long.parse::<TrustDomain>().is_ok());
        assert!(format!("spiffe://{long}/a").parse::<SpiffeId>().is_ok());
        assert_eq!(format!("spiffe://d{long}/a").parse::<SpiffeId>().unwrap_err().rule(), "is longer than 255 bytes");
        assert_eq!(format!("d{long}").parse::<TrustDomain>().unwrap_err().rule(), "is longer than 255 bytes");
    }

    #[test]
    fn trust_domains_are_hosts_in_lower_case() {
        let rows: &[(&str, Option<&str>)] = &[
            ("east", Some("east")),
            ("East.Example", Some("east.example")),
            ("a_b-c.9", Some("a_b-c.9")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("", None),
            ("spiffe://east", None),
            ("east/a", None),
            ("east:1", None),
            ("u@east", None),
            ("[::1]", None),
            ("e%61st", None),
            ("east ", None),
            ("öst", None),
            ("*.east", None),
        ];
        for (text, must) in rows {
            assert_eq!(text.parse::<TrustDomain>().ok().as_ref().map(TrustDomain::as_str), *must, "{text:?}");
        }
    }

    /// What is minted from Kubernetes' names is an ID or is refused; nothing is escaped.
    #[test]
    fn an_id_of_a_service_account_is_minted_or_refused() {
        let domain: TrustDomain = "east.example".parse().unwrap();
        let of = |namespace: &str, account: &str| SpiffeId::service_account(&domain, namespace, account);
        assert_eq!(of("shop", "check.out").unwrap().as_str(), "spiffe://east.example/ns/shop/sa/check.out");
        for (namespace, account) in
            [("", "a"), ("a", ""), ("a/sa/b", "c"), ("a", "b/c"), ("..", "a"), ("a", "system:admin"), ("a", "b%2f")]
        {
            assert!(of(namespace, account).is_err(), "{namespace:?} {account:?}");
        }
    }

    #[test]
    fn a_name_that_only_starts_like_another_is_another() {
        let ours: SpiffeId = "spiffe://a.example/ns/x".parse().unwrap();
        let theirs: SpiffeId = "spiffe://a.example.evil/ns/x".parse().unwrap();
        assert_ne!(ours.trust_domain(), theirs.trust_domain());
    }

    #[test]
    fn a_service_port_has_exactly_one_spelling() {
        let port: ServicePort = "shop/checkout:80".parse().unwrap();
        assert_eq!(port.to_string(), "shop/checkout:80");
        for bad in [
            "shop/checkout",
            "checkout:80",
            "shop/checkout:0",
            "shop/checkout:+80",
            "shop/checkout:080",
            "shop/checkout:65536",
            "shop/Checkout:80",
            "/checkout:80",
            "shop/:80",
            "a/b/c:80",
            "shop/checkout:80:80",
        ] {
            assert!(bad.parse::<ServicePort>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn labels_follow_rfc_1123() {
        for good in ["a", "shop", "a-1", "0", &"a".repeat(63)] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good:?} was refused");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "ä", &"a".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad:?} was accepted");
        }
    }
}
