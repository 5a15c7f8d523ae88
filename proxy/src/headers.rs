//! What the proxies take from a message's head and what they add, the same on both sides.
//!
//! RFC 9110 section 7.6.1 says what belongs to one hop only. Beyond it: nobody but the inbound proxy says who a caller
//! is, so every header that a mesh is known to use for that goes, in any spelling that an application might take for it.

use bytes::Bytes;
use hawser_api::labels::{HEADER_CARRIES, HEADER_REFUSAL, HEADER_TARGET, HEADER_VERSION, IDENTITY_HEADERS};
use hawser_api::{Code, Refusal};
use http::header::{self, Entry, HeaderMap, HeaderName, HeaderValue};
use http::uri::Authority;
use http::{Method, Version, request};

/// Headers of one hop that need not be listed in `Connection`.
const HOP_BY_HOP: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Trace context that the outbound proxy made up for its own records, because the application sent none. It must not
/// become the application's `traceparent`: its sampled flag would decide for every tracer behind it.
pub const HEADER_TRACE: &str = "hawser-trace";

/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Longest trace context that is kept for records and opens: version 00 has 55 characters.
const TRACEPARENT_MAX: usize = 64;

/// Removes what belongs to one hop; `te: trailers` stays, because HTTP/2 has it too.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let trailers = headers.get_all(header::TE).iter().any(|te| lists(te, "trailers"));
    if headers.contains_key(header::CONNECTION) {
        let listed: Vec<HeaderName> = headers.get_all(header::CONNECTION).iter().flat_map(listed_names).collect();
        for name in listed.iter().filter(|name| may_be_listed(name)) {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
    if let Entry::Occupied(mut te) = headers.entry(header::TE) {
        if trailers {
            te.insert(HeaderValue::from_static("trailers"));
        } else {
            te.remove();
        }
    }
}

/// `Connection` may name anything; a caller must not use it to take away what the next hop decides by.
fn may_be_listed(name: &HeaderName) -> bool {
    *name != header::HOST && *name != header::CONTENT_LENGTH && *name != header::TE
}

fn listed_names(value: &HeaderValue) -> impl Iterator<Item = HeaderName> {
    value.as_bytes().split(|b| *b == b',').filter_map(|token| HeaderName::from_bytes(token.trim_ascii()).ok())
}

fn lists(value: &HeaderValue, word: &str) -> bool {
    let tokens = value.as_bytes().split(|b| *b == b',');
    // A weight may follow: `trailers;q=0.5`.
    let words = tokens.map(|token| token.split(|b| *b == b';').next().unwrap_or_default().trim_ascii());
    words.into_iter().any(|token| token.eq_ignore_ascii_case(word.as_bytes()))
}

/// Whether a comma-separated header names this word.
pub fn has_token(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers.get_all(name).iter().any(|value| lists(value, word))
}

/// Removes every header by which a caller might pass for somebody else, and those that the proxies speak by.
pub fn strip_identity(headers: &mut HeaderMap) {
    for name in IDENTITY_HEADERS {
        headers.remove(*name);
    }
    for name in [HEADER_TARGET, HEADER_CARRIES, HEADER_VERSION, HEADER_TRACE] {
        headers.remove(name);
    }
    // Many frameworks (CGI's, WSGI's, Rack's) show `x_spiffe_id` and `x-spiffe-id` to the application as one.
    let spelt: Vec<HeaderName> = headers.keys().filter(|name| is_identity_in_disguise(name)).cloned().collect();
    for name in &spelt {
        headers.remove(name);
    }
}

fn is_identity_in_disguise(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-spiffe-")
        || (name.as_str().contains('_') && {
            let plain = name.as_str().replace('_', "-");
            plain.starts_with("x-spiffe-") || IDENTITY_HEADERS.contains(&plain.as_str())
        })
}

/// What must not come in trailers: framing, routing and identity (RFC 9110 section 6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    strip_identity(trailers);
    for name in [header::TE, header::CONTENT_LENGTH, header::HOST, header::TRAILER] {
        trailers.remove(name);
    }
    trailers.remove(HEADER_REFUSAL);
}

/// From an application's answer: hop-by-hop headers, and Hawser's own word, which applications do not speak.
pub fn strip_response(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(header::TE);
    headers.remove(HEADER_REFUSAL);
}

/// The one authority of a request: of its target, or of its `Host`, which is then removed. Both, if they are there, must
/// agree in an HTTP/2 request; in an HTTP/1 request the target's wins (RFC 9112 section 3.2.2). `None`: there is none,
/// as HTTP/1.0 allows.
pub fn take_authority(parts: &mut request::Parts) -> Result<Option<Authority>, Refusal> {
    let bad = |message: &str| Refusal::new(Code::BadRequest, message, "send exactly one well-formed Host header");
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(bad("the request has more than one Host header"));
    }
    let host = match host {
        None => None,
        Some(host) if host.is_empty() => None,
        Some(host) => Some(Authority::try_from(host.as_bytes()).map_err(|_| bad("the Host header is malformed"))?),
    };
    if host.is_none() && parts.version == Version::HTTP_11 && parts.uri.authority().is_none() {
        // RFC 9112 section 3.2: a 1.1 request without Host is answered with 400.
        return Err(bad("the request has no Host header"));
    }
    let authority = match (parts.uri.authority(), host) {
        (Some(target), Some(host)) if parts.version == Version::HTTP_2 && *target != host => {
            return Err(bad("the Host header and :authority differ"));
        }
        (Some(target), _) => Some(target.clone()),
        (None, host) => host,
    };
    if authority.as_ref().is_some_and(|a| a.as_str().contains('@')) {
        return Err(bad("the request's authority contains user information"));
    }
    parts.headers.remove(header::HOST);
    Ok(authority)
}

/// Refuses what different readers read differently (request smuggling). hyper has refused unequal lengths, obsolete
/// folding and transfer codings other than chunked, and has dropped a length beside chunked together with the
/// connection's future.
pub fn check_framing(parts: &request::Parts) -> Result<(), Refusal> {
    let bad = |message: &str| Refusal::new(Code::BadRequest, message, "frame the request in one way only");
    let lengths = parts.headers.get_all(header::CONTENT_LENGTH).iter().count();
    if lengths > 1 {
        return Err(bad("the request has more than one Content-Length"));
    }
    if lengths == 1 && parts.headers.contains_key(header::TRANSFER_ENCODING) {
        return Err(bad("the request has both Content-Length and Transfer-Encoding"));
    }
    Ok(())
}

/// Whether an HTTP/1.1 request wants the connection to become something else.
pub fn wants_upgrade(parts: &request::Parts) -> bool {
    parts.method == Method::CONNECT
        || (parts.version == Version::HTTP_11
            && parts.headers.contains_key(header::UPGRADE)
            && has_token(&parts.headers, &header::CONNECTION, "upgrade"))
}

/// The request's trace context for records: the caller's, or the one that the outbound proxy made up.
pub fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(TRACEPARENT).or_else(|| headers.get(HEADER_TRACE))?.to_str().ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    (plain && !text.is_empty() && text.len() <= TRACEPARENT_MAX).then_some(text)
}

/// A trace context that nobody samples, so that the records of both proxies can be joined.
pub fn new_trace() -> HeaderValue {
    let (trace, span) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    HeaderValue::try_from(format!("00-{trace:032x}-{span:016x}-00")).unwrap_or_else(|_| HeaderValue::from_static("00"))
}

/// What `hawser-version` says of a request.
pub fn version_word(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 | Version::HTTP_09 => "1.0",
        _ => "1.1",
    })
}

/// A refusal as an answer: status, the stable code as a header, and a body for people. A gRPC caller gets a gRPC status
/// instead, because its library shows that and hides the rest.
pub fn refusal_response(refusal: &Refusal, grpc: bool) -> http::Response<Bytes> {
    let mut response = http::Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(HEADER_REFUSAL, HeaderValue::from_static(refusal.code.as_str()));
    if let Some(after) = refusal.retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    if grpc {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(grpc_status(refusal.code)));
        if let Ok(message) = HeaderValue::from_str(&percent_encode(refusal)) {
            headers.insert("grpc-message", message);
        }
        return response;
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    *response.status_mut() = http::StatusCode::from_u16(refusal.code.http_status()).unwrap_or_default();
    *response.body_mut() = Bytes::from(refusal.body());
    response
}

/// Of gRPC's status codes (grpc/doc/statuscodes.md).
fn grpc_status(code: Code) -> &'static str {
    match code.http_status() {
        400 => "3",
        403 => "7",
        504 => "4",
        _ => "14",
    }
}

/// As gRPC's `Status-Message` wants it (PROTOCOL-HTTP2.md): everything but printable ASCII, and `%`, in percent form.
fn percent_encode(refusal: &Refusal) -> String {
    let text = format!("hawser: {refusal}; hint: {}", refusal.remedy);
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// Whether a request is gRPC's.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The refusal in an answer that Hawser's other end made; its texts are in the body, which the caller reads.
pub fn refusal_code(headers: &HeaderMap) -> Option<Code> {
    // A word that this version does not know comes from a newer one; it is safe to try elsewhere.
    headers.get(HEADER_REFUSAL).map(|v| v.to_str().ok().and_then(|v| v.parse().ok()).unwrap_or(Code::PeerUnreachable))
}

/// The refusal that the other end wrote into a body; as hostile as any peer's text.
pub fn parse_refusal(code: Code, body: &str) -> Refusal {
    let (message, remedy) = body.split_once("\nhint: ").unwrap_or((body, ""));
    let prefix = format!("hawser: {code}: ");
    let message = message.strip_prefix(prefix.as_str()).unwrap_or(message).to_owned();
    let wire = hawser_api::proto::tunnel::Refused {
        code: code.to_string(),
        message,
        remedy: remedy.to_owned(),
        retry_after_ms: 0,
    };
    Refusal::from_wire(&wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        let mut map = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    fn names(map: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_belongs_to_one_hop_goes_and_the_rest_stays() {
        let mut headers = map(&[
            ("connection", "close, X-Mine"),
            ("connection", "x-other , TE"),
            ("x-mine", "1"),
            ("x-other", "2"),
            ("x-end-to-end", "3"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip, trailers;q=0.5"),
            ("trailer", "x-sum"),
            ("proxy-authorization", "Basic eA=="),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["proxy-authorization", "te", "trailer", "x-end-to-end"]);
        assert_eq!(headers["te"], "trailers");
        let mut headers = map(&[("te", "gzip")]);
        strip_hop_by_hop(&mut headers);
        assert!(headers.is_empty());
    }

    #[test]
    fn connection_cannot_take_away_what_the_next_hop_decides_by() {
        let mut headers = map(&[("connection", "host, content-length"), ("host", "a"), ("content-length", "3")]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["content-length", "host"]);
    }

    #[test]
    fn no_spelling_of_an_identity_header_survives() {
        let mut spellings: Vec<String> = IDENTITY_HEADERS.iter().map(|name| (*name).to_owned()).collect();
        spellings.extend(IDENTITY_HEADERS.iter().map(|name| name.replace('-', "_")));
        spellings.extend(IDENTITY_HEADERS.iter().map(|name| name.to_ascii_uppercase()));
        spellings.extend(IDENTITY_HEADERS.iter().map(|name| name.replacen('-', "_", 1)));
        spellings.extend(
            ["x-spiffe-anything", "X_SPIFFE_jwt", HEADER_TARGET, HEADER_VERSION, HEADER_CARRIES].map(Into::into),
        );
        for name in spellings {
            let mut headers = map(&[(&name, "spiffe://evil/a"), (&name, "again"), ("x-kept", "1"), ("x_kept", "1")]);
            strip_identity(&mut headers);
            assert_eq!(names(&headers), ["x-kept", "x_kept"], "{name}");
            let mut trailers = map(&[(&name, "spiffe://evil/a"), ("grpc-status", "0"), ("content-length", "3")]);
            strip_trailers(&mut trailers);
            assert_eq!(names(&trailers), ["grpc-status"], "{name}");
        }
    }

    fn authority(version: Version, uri: &str, hosts: &[&str]) -> Result<Option<String>, Code> {
        let mut builder = http::Request::builder().version(version).uri(uri);
        for host in hosts {
            builder = builder.header(header::HOST, *host);
        }
        let (mut parts, ()) = builder.body(()).unwrap().into_parts();
        let found = take_authority(&mut parts).map_err(|refusal| refusal.code)?;
        assert!(!parts.headers.contains_key(header::HOST));
        Ok(found.map(|a| a.to_string()))
    }

    #[test]
    fn a_request_has_one_authority_or_is_refused() {
        let bad = Err(Code::BadRequest);
        for (version, uri, hosts, expected) in [
            (Version::HTTP_11, "/", &["a:80"][..], Ok(Some("a:80".to_owned()))),
            (Version::HTTP_11, "http://b/", &["a"], Ok(Some("b".to_owned()))),
            (Version::HTTP_11, "/", &[], bad.clone()),
            (Version::HTTP_10, "/", &[], Ok(None)),
            (Version::HTTP_11, "/", &["a", "a"], bad.clone()),
            (Version::HTTP_11, "/", &["a", "b"], bad.clone()),
            (Version::HTTP_11, "/", &["a b"], bad.clone()),
            (Version::HTTP_11, "/", &["a/b"], bad.clone()),
            (Version::HTTP_11, "/", &["u@a"], bad.clone()),
            (Version::HTTP_2, "http://a/", &["a"], Ok(Some("a".to_owned()))),
            (Version::HTTP_2, "http://a/", &[], Ok(Some("a".to_owned()))),
            (Version::HTTP_2, "http://a/", &["b"], bad),
        ] {
            assert_eq!(authority(version, uri, hosts), expected, "{version:?} {uri} {hosts:?}");
        }
    }

    #[test]
    fn a_refusal_is_readable_by_people_scripts_and_grpc_libraries() {
        let refusal = Refusal::new(Code::NotExported, "no such port in 100% of cases", "export it");
        let plain = refusal_response(&refusal, false);
        assert_eq!(plain.status(), 403);
        assert_eq!(plain.headers()[HEADER_REFUSAL], "not_exported");
        assert!(std::str::from_utf8(plain.body()).unwrap().contains("\nhint: export it\n"));
        assert_eq!(parse_refusal(Code::NotExported, std::str::from_utf8(plain.body()).unwrap()), refusal);
        let grpc = refusal_response(&refusal, true);
        assert_eq!(grpc.status(), 200);
        assert_eq!(grpc.headers()["grpc-status"], "7");
        assert!(grpc.headers()["grpc-message"].to_str().unwrap().contains("100%25"));
        assert_eq!(refusal_code(grpc.headers()), Some(Code::NotExported));
    }

    #[test]
    fn a_trace_is_made_up_where_the_caller_has_none() {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_TRACE, new_trace());
        let made = traceparent(&headers).unwrap().to_owned();
        assert_eq!((made.len(), &made[..3], &made[52..]), (55, "00-", "-00"));
        let theirs = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert(TRACEPARENT, HeaderValue::from_static(theirs));
        assert_eq!(traceparent(&headers), Some(theirs));
    }

    #[test]
    fn only_something_like_trace_context_is_kept() {
        for (text, kept) in [
            ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", true),
            ("", false),
            ("a\tb", false),
            (&"a".repeat(65), false),
        ] {
            assert_eq!(traceparent(&map(&[(TRACEPARENT, text)])).is_some(), kept, "{text:?}");
        }
    }
}
