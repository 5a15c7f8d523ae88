//! One GET of one document: whom to dial, and what an answer may be.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hawser_api::bundle::DOCUMENT_MAX;
use hawser_tunnel::https::Client;
use http::header::{ACCEPT, HOST, LOCATION, USER_AGENT};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For the whole fetch, redirects included.
const FETCH_MAX: Duration = Duration::from_secs(15);
/// Redirects that are followed, where they are at all.
const REDIRECTS_MAX: usize = 3;
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;

/// An `https` URL without user information.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    host: String,
    port: u16,
    path: String,
}

/// Why a text is no URL of a bundle endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the URL {0}")]
pub struct UrlError(&'static str);

impl Url {
    /// Reads it (SPIFFE Federation section 5.2: `https`, no user information; host, port and path are free).
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.parse().map_err(|_| UrlError("cannot be read"))?;
        if uri.scheme_str() != Some("https") {
            return Err(UrlError("is not an https URL"));
        }
        let authority = uri.authority().ok_or(UrlError("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(UrlError("has user information"));
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(UrlError("names no host"));
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { host, port: authority.port_u16().unwrap_or(443), path })
    }

    fn host_header(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == 443 { host } else { format!("{host}:{}", self.port) }
    }
}

/// Whether a peer's words, or a name server's, may lead us to this address: not to ourselves, nor to what trusts
/// whoever is on this machine or this wire.
fn may_dial(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets().starts_with(&[0]))
        }
        IpAddr::V6(v6) => {
            let metadata = v6.segments().starts_with(&[0xfd00, 0xec2]);
            !(v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified() || v6.is_multicast() || metadata)
        }
    }
}

/// The addresses to dial, resolved once. One that the local configuration names literally is taken at its word.
async fn resolve(url: &Url, configured: bool) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = url.host.parse::<IpAddr>() {
        if configured || may_dial(ip) {
            return Ok(vec![SocketAddr::new(ip, url.port)]);
        }
        return Err(format!("{ip} is no address to be sent to by others"));
    }
    let found = tokio::net::lookup_host((url.host.as_str(), url.port)).await;
    let found: Vec<SocketAddr> = found.map_err(|e| format!("{}: {e}", url.host))?.collect();
    let addresses: Vec<SocketAddr> =
        found.iter().filter(|address| may_dial(address.ip())).take(ADDRESSES_MAX).copied().collect();
    if addresses.is_empty() {
        let first = found.first().map(|address| address.ip().to_string()).unwrap_or_else(|| "nothing".into());
        return Err(format!(
            "{} leads to {first}, a loopback, link-local or metadata address; write the address itself into the URL if \
             that is meant",
            url.host
        ));
    }
    Ok(addresses)
}

/// Fetches the document at a URL of the local configuration.
pub(super) async fn get(url: &Url, client: &Client, follow: bool) -> Result<String, String> {
    let fetched = async {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS_MAX {
            let configured = (&at.host, at.port) == (&url.host, url.port);
            let response = one(&at, client, configured).await?;
            match response.status() {
                StatusCode::OK => return body(response).await,
                status if status.is_redirection() && follow => at = location(&response, &at)?,
                status if status.is_redirection() => {
                    return Err(format!("it answers {status}: redirects are not followed (followRedirects)"));
                }
                status => return Err(format!("it answers {status}")),
            }
        }
        Err(format!("more than {REDIRECTS_MAX} redirects"))
    };
    timeout(FETCH_MAX, fetched).await.map_err(|_| format!("no document within {} s", FETCH_MAX.as_secs()))?
}

async fn one(url: &Url, client: &Client, configured: bool) -> Result<Response<Incoming>, String> {
    let mut why = String::new();
    for address in resolve(url, configured).await? {
        match TcpStream::connect(address).await {
            Ok(socket) => return ask(url, client, socket).await.map_err(|e| format!("{address}: {e}")),
            Err(error) => why = format!("{address}: {error}"),
        }
    }
    Err(why)
}

async fn ask(url: &Url, client: &Client, socket: TcpStream) -> Result<Response<Incoming>, String> {
    let stream = client.connect(socket, &url.host).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    // Ends with the sender, or with the deadline of the whole fetch.
    tokio::spawn(connection);
    let request = Request::get(&url.path)
        .header(HOST, url.host_header())
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, "hawser")
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    sender.send_request(request).await.map_err(|e| e.to_string())
}

async fn body(response: Response<Incoming>) -> Result<String, String> {
    let body = Limited::new(response.into_body(), DOCUMENT_MAX).collect().await;
    let bytes = body.map_err(|e| format!("the document: {e} (at most {DOCUMENT_MAX} bytes)"))?.to_bytes();
    String::from_utf8(bytes.into()).map_err(|_| "the document is not UTF-8".to_owned())
}

/// Where a redirect leads: another endpoint under the same rules, or another path of the same.
fn location(response: &Response<Incoming>, from: &Url) -> Result<Url, String> {
    let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or("a redirect to nowhere")?;
    if location.starts_with('/') && !location.starts_with("//") {
        return Ok(Url { path: location.to_owned(), ..from.clone() });
    }
    Url::parse(location).map_err(|e| format!("a redirect: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_https_without_user_information_and_with_any_path() {
        let url = Url::parse("https://bundles.example.org:8443/a/b?c").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.path.as_str()), ("bundles.example.org", 8443, "/a/b?c"));
        assert_eq!(Url::parse("https://[2001:db8::1]/").unwrap().host, "2001:db8::1");
        assert_eq!(Url::parse("https://192.0.2.1").unwrap().port, 443);
        for bad in [
            "http://example.org/",
            "HTTP://example.org",
            "https://user@example.org/",
            "https://u:p@example.org/",
            "",
            "/path",
            "example.org",
            "https://",
            "https://:443/",
            "spiffe://example.org",
            "https://exa mple.org",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_that_lead_here_or_to_metadata_are_refused_and_literals_of_ours_are_not() {
        let url = |host: &str| Url { host: host.into(), port: 443, path: "/".into() };
        // A decimal address is a name to us, and a loopback address to the resolver.
        for name in ["localhost", "2130706433", "0x7f.1"] {
            assert!(resolve(&url(name), true).await.is_err(), "{name}");
        }
        for literal in ["127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1"] {
            assert!(resolve(&url(literal), true).await.is_ok(), "{literal}");
            // The same in a redirect is a stranger's word.
            assert!(resolve(&url(literal), false).await.is_err(), "{literal}");
        }
        for denied in ["0.0.0.0", "224.0.0.1", "ff02::1", "fe80::1", "fd00:ec2::254", "255.255.255.255", "0.1.2.3"] {
            assert!(!may_dial(denied.parse().unwrap()), "{denied}");
        }
        for allowed in ["10.0.0.1", "192.0.2.1", "2001:db8::1", "fd00::1"] {
            assert!(may_dial(allowed.parse().unwrap()), "{allowed}");
        }
    }
}
