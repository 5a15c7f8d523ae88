//! What protocol an application speaks, from its first bytes: HTTP/2, HTTP/1, or something that is none of our business.
//!
//! [`detect`] is pure. [`read`] feeds it from a connection, at most [`PEEK_MAX`] bytes and not longer than a deadline;
//! ports whose servers speak first are never looked at, because there both ends would wait for each other.

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hawser_api::labels::APP_PROTOCOL_OPAQUE;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest look. A request line of an ordinary browser fits; for longer ones the beginning decides.
pub const PEEK_MAX: usize = 1024;

/// RFC 9113 section 3.4.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is believed. The longest registered one, UPDATEREDIRECTREF, has 17 letters.
const METHOD_MAX: usize = 24;

/// Ports whose servers speak first: FTP, SSH, Telnet, SMTP, POP3, NNTP, IMAP, submission, rsync, MySQL, VNC. PostgreSQL,
/// Redis and memcached are not among them: their clients speak first, and not HTTP.
const SERVER_SPEAKS_FIRST: [u16; 11] = [21, 22, 23, 25, 110, 119, 143, 587, 873, 3306, 5900];

/// What an application speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// Bytes.
    Opaque,
}

/// What is known before the first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Nothing: look.
    Unknown,
    /// HTTP of either version.
    Http,
    /// HTTP/2.
    Http2,
    /// Do not look.
    Opaque,
}

/// From what the Service says of its port, and from the port's number.
pub fn hint(app_protocol: &str, port: u16) -> Hint {
    match app_protocol.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => Hint::Http,
        "kubernetes.io/h2c" | "http2" | "grpc" => Hint::Http2,
        APP_PROTOCOL_OPAQUE | "tcp" | "https" | "tls" | "kubernetes.io/wss" => Hint::Opaque,
        _ if SERVER_SPEAKS_FIRST.contains(&port) => Hint::Opaque,
        _ => Hint::Unknown,
    }
}

/// The protocol of a connection that begins with these bytes; `None`: more of them are needed.
pub fn detect(bytes: &[u8]) -> Option<Protocol> {
    if let Some(rest) = bytes.strip_prefix(PREFACE.get(..bytes.len()).unwrap_or(PREFACE)) {
        // All bytes agree with the preface; it is the preface once all of it is there.
        return (bytes.len() >= PREFACE.len() || !rest.is_empty()).then_some(Protocol::Http2);
    }
    // RFC 9112 section 2.2: empty lines before a request line are ignored.
    let start = bytes.iter().position(|b| !matches!(b, b'\r' | b'\n')).unwrap_or(bytes.len());
    let line = bytes.get(start..).unwrap_or_default();
    let method = line.iter().take_while(|b| is_token(**b)).count();
    if method > METHOD_MAX {
        return Some(Protocol::Opaque);
    }
    match line.get(method) {
        None => more_or(bytes, Protocol::Opaque),
        Some(b' ') if method > 0 => request_line(bytes, line, method + 1),
        Some(_) => Some(Protocol::Opaque),
    }
}

/// `line` has a method and a space; what follows should be a target and a version.
fn request_line(bytes: &[u8], line: &[u8], target: usize) -> Option<Protocol> {
    let rest = line.get(target..).unwrap_or_default();
    if let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = rest.get(..end).unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let versioned = line.len() > 9 && (line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0"));
        // Part of such a line was opaque already: how it is cut must not matter.
        let plain = !line.iter().any(u8::is_ascii_control);
        return Some(if versioned && plain { Protocol::Http1 } else { Protocol::Opaque });
    }
    // A carriage return may be the end of the line that has not come whole.
    if rest.strip_suffix(b"\r").unwrap_or(rest).iter().any(u8::is_ascii_control) {
        return Some(Protocol::Opaque);
    }
    // A line longer than the look: it has a method, and a target of a form that RFC 9112 section 3.2 knows.
    let method = line.get(..target - 1).unwrap_or_default();
    let form = rest.starts_with(b"/") || rest.starts_with(b"http://") || rest.starts_with(b"https://");
    let http = form && method.iter().all(u8::is_ascii_uppercase);
    more_or(bytes, if http { Protocol::Http1 } else { Protocol::Opaque })
}

fn more_or(bytes: &[u8], full: Protocol) -> Option<Protocol> {
    (bytes.len() >= PEEK_MAX).then_some(full)
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Reads until the protocol is clear and gives it back with what was read. The end of the stream, the deadline and a
/// full look all mean that it is opaque.
pub async fn read<R: AsyncRead + Unpin>(app: &mut R, hint: Hint, deadline: Duration) -> io::Result<(Protocol, Bytes)> {
    match hint {
        Hint::Opaque => return Ok((Protocol::Opaque, Bytes::new())),
        Hint::Http2 => return Ok((Protocol::Http2, Bytes::new())),
        Hint::Http | Hint::Unknown => {}
    }
    let mut buffer = BytesMut::with_capacity(PEEK_MAX);
    let looking = async {
        loop {
            // `take`, because a buffer that is full grows when it is read into.
            let room = u64::try_from(PEEK_MAX.saturating_sub(buffer.len())).unwrap_or_default();
            if room == 0 || app.take(room).read_buf(&mut buffer).await? == 0 {
                return Ok::<_, io::Error>(Protocol::Opaque);
            }
            if let Some(protocol) = detect(&buffer) {
                return Ok(protocol);
            }
        }
    };
    let found = match tokio::time::timeout(deadline, looking).await {
        Ok(found) => found?,
        Err(_) => Protocol::Opaque,
    };
    // A port that is declared HTTP gets HTTP's own answer to what is none.
    let found = if hint == Hint::Http && found == Protocol::Opaque { Protocol::Http1 } else { found };
    Ok((found, buffer.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn protocols_are_told_apart_by_their_first_bytes() {
        use Protocol::{Http1, Http2, Opaque};
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(2 * PEEK_MAX));
        let long = &long.as_bytes()[..PEEK_MAX];
        let table: &[(&[u8], Option<Protocol>)] = &[
            (b"", None),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0", Some(Http2)),
            (b"PRI * HTTP/1.1\r\n", Some(Http1)),
            (b"GET", None),
            (b"GET / HTTP/1.1", None),
            (b"GET / HTTP/1.1\r", None),
            (b"GET / HTTP/1.1\r\n", Some(Http1)),
            (b"GET / HTTP/1.0\n", Some(Http1)),
            (b"\r\nGET / HTTP/1.1\r\nhost: a\r\n", Some(Http1)),
            (b"PROPFIND http://a/b HTTP/1.1\r\n", Some(Http1)),
            (b"CONNECT a:443 HTTP/1.1\r\n", Some(Http1)),
            (b"OPTIONS * HTTP/1.1\r\n", Some(Http1)),
            (b"M-SEARCH * HTTP/1.1\r\n", Some(Http1)),
            (long, Some(Http1)),
            // An old request without a version, which a server that speaks something else may mean otherwise.
            (b"GET /\r\n", Some(Opaque)),
            (b"GET / HTTP/3\r\n", Some(Opaque)),
            (b"GET HTTP/1.1\r\n", Some(Opaque)),
            // Redis, inline and not; memcached; SMTP; SSH; TLS; PostgreSQL; MQTT; MongoDB
            (b"GET key\r\n", Some(Opaque)),
            (b"*1\r\n$4\r\nPING\r\n", Some(Opaque)),
            (b"set key 0 0 5\r\nhello\r\n", Some(Opaque)),
            (b"EHLO example.org\r\n", Some(Opaque)),
            (b"SSH-2.0-OpenSSH_9.2\r\n", Some(Opaque)),
            (b"\x16\x03\x01\x02\x00", Some(Opaque)),
            (b"\0\0\0\x08\x04\xd2\x16/", Some(Opaque)),
            (b"\x10\x10\0\x04MQTT", Some(Opaque)),
            (b"\x3b\0\0\0", Some(Opaque)),
            (b" / HTTP/1.1\r\n", Some(Opaque)),
            (b"GET /\0 HTTP", Some(Opaque)),
            (b"GET /\ra", Some(Opaque)),
            (b"GET /\ra HTTP/1.1\r\n", Some(Opaque)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Some(Opaque)),
        ];
        for (bytes, expected) in table {
            assert_eq!(detect(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_the_service_says_comes_before_the_port_number() {
        for (app_protocol, port, expected) in [
            ("", 80, Hint::Unknown),
            ("", 3306, Hint::Opaque),
            ("http", 3306, Hint::Http),
            ("HTTP", 80, Hint::Http),
            ("kubernetes.io/h2c", 80, Hint::Http2),
            ("grpc", 80, Hint::Http2),
            ("hawser.dev/opaque", 80, Hint::Opaque),
            ("https", 443, Hint::Opaque),
            ("example.org/own", 80, Hint::Unknown),
        ] {
            assert_eq!(hint(app_protocol, port), expected, "{app_protocol} {port}");
        }
    }

    proptest! {
        #[test]
        fn a_look_that_is_full_always_decides(bytes in prop::collection::vec(any::<u8>(), PEEK_MAX..PEEK_MAX + 10)) {
            prop_assert!(detect(&bytes).is_some());
        }

        #[test]
        fn more_bytes_never_change_a_decision(bytes in "[A-Z]{0,4} ?[a-z/ ]{0,8}( HTTP/1.1)?\r?\n?[a-z]{0,4}", at in 0_usize..30) {
            let bytes = bytes.as_bytes();
            if let Some(early) = detect(&bytes[..at.min(bytes.len())]) {
                prop_assert_eq!(detect(bytes), Some(early));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_opaque_after_the_deadline_and_loses_nothing() {
        let (mut client, mut server) = tokio::io::duplex(64);
        tokio::io::AsyncWriteExt::write_all(&mut client, b"GET").await.unwrap();
        let (protocol, early) = read(&mut server, Hint::Unknown, Duration::from_secs(3)).await.unwrap();
        assert_eq!((protocol, &*early), (Protocol::Opaque, &b"GET"[..]));
        let (protocol, early) = read(&mut server, Hint::Opaque, Duration::from_secs(3)).await.unwrap();
        assert_eq!((protocol, &*early), (Protocol::Opaque, &b""[..]));
    }

    #[tokio::test]
    async fn a_request_that_arrives_byte_by_byte_is_seen() {
        let (mut client, mut server) = tokio::io::duplex(1);
        let send = async { tokio::io::AsyncWriteExt::write_all(&mut client, b"GET /a HTTP/1.1\r\n").await };
        let (sent, got) = tokio::join!(send, read(&mut server, Hint::Unknown, Duration::from_secs(3)));
        sent.unwrap();
        let (protocol, early) = got.unwrap();
        assert_eq!((protocol, &*early), (Protocol::Http1, &b"GET /a HTTP/1.1\r\n"[..]));
    }
}
