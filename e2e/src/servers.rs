//! Applications, in this very process: an HTTP server that tells what it saw, and a TCP server that echoes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A server until it is dropped; then it refuses connections and resets those it had, as a killed process would.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Server {
    /// HTTP/1.1: answers every request with JSON that tells what arrived, and `instance` as who answered. The path
    /// `/status/<code>` sets the status.
    pub async fn http(address: SocketAddr, instance: &str) -> Result<Self> {
        let instance: Arc<str> = instance.into();
        Self::start(address, move |stream| {
            let instance = Arc::clone(&instance);
            async move {
                // A client that goes away in the middle is none of the server's business.
                let _ = serve_http(stream, &instance).await;
            }
        })
        .await
    }

    /// TCP: sends back what it gets; a half-close too.
    pub async fn echo(address: SocketAddr) -> Result<Self> {
        Self::start(address, |mut stream| async move {
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        })
        .await
    }

    /// TCP: speaks first, then echoes.
    pub async fn greeter(address: SocketAddr, greeting: &'static str) -> Result<Self> {
        Self::start(address, move |mut stream| async move {
            let _ = stream.write_all(greeting.as_bytes()).await;
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        })
        .await
    }

    async fn start<F, Fut>(address: SocketAddr, serve: F) -> Result<Self>
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.with_context(|| format!("cannot bind {address}"))?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(AtomicU64::new(0));
        let stop = CancellationToken::new();
        let (count, stopped) = (Arc::clone(&accepted), stop.clone());
        tokio::spawn(async move {
            // Dropped with the loop, and every connection with it.
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    () = stopped.cancelled() => break,
                    Some(_) = connections.join_next() => {}
                    accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                        let _ = stream.set_nodelay(true);
                        count.fetch_add(1, Ordering::Relaxed);
                        connections.spawn(serve(stream));
                    },
                }
            }
        });
        Ok(Self { address, accepted, stop })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve_http(stream: TcpStream, instance: &str) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let mut words = line.split(' ');
        let method = words.next().unwrap_or_default().to_owned();
        let path = words.next().unwrap_or_default().to_owned();
        let headers = read_headers(&mut stream).await?;
        let received = read_body(&mut stream, &headers).await?;
        let status = path.strip_prefix("/status/").and_then(|code| code.parse().ok()).unwrap_or(200u16);
        let body = json!({
            "instance": instance, "method": method, "path": path, "headers": headers, "received": received,
        });
        let body = if method == "HEAD" { String::new() } else { body.to_string() };
        let head = format!(
            "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).await?;
    }
}

type Headers = BTreeMap<String, Vec<String>>;

async fn read_headers(stream: &mut BufReader<TcpStream>) -> Result<Headers> {
    let mut headers = Headers::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(headers) };
        headers.entry(name.to_ascii_lowercase()).or_default().push(value.trim().to_owned());
    }
}

/// Reads a request's body away and tells its length.
async fn read_body(stream: &mut BufReader<TcpStream>, headers: &Headers) -> Result<u64> {
    let first = |name: &str| headers.get(name).and_then(|values| values.first());
    if let Some(length) = first("content-length") {
        let length: u64 = length.parse()?;
        return Ok(tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await?);
    }
    if first("transfer-encoding").is_none_or(|value| value != "chunked") {
        return Ok(0);
    }
    let mut all = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let size = u64::from_str_radix(line.trim_end(), 16)?;
        all += tokio::io::copy(&mut (&mut *stream).take(size), &mut tokio::io::sink()).await?;
        // The end of the chunk, or trailers and the empty line.
        while stream.read_line(&mut String::new()).await? > 2 {}
        if size == 0 {
            return Ok(all);
        }
    }
}

/// A header as the server saw it, from the answer of [`Server::http`]; several values are joined with `, `.
pub fn seen(answer: &Value, header: &str) -> Option<String> {
    let values = answer.get("headers")?.get(header)?.as_array()?;
    Some(values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "))
}

/// What [`Server::http`] told, as text: `instance`, `method`, `path`, `received`.
pub fn told(answer: &Value, field: &str) -> String {
    let value = answer.get(field);
    value.and_then(Value::as_str).map_or_else(|| value.map(Value::to_string).unwrap_or_default(), str::to_owned)
}
