//! An HTTP/1.1 client that hides nothing: one connection, one request after the other, every byte of the answer.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// For one connect, and for one request with its answer: a hang is a failure.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A way to a server.
#[derive(Debug, Clone)]
pub enum Via {
    /// Straight, or through a virtual address.
    Address(SocketAddr),
    /// By name, through a proxy's SOCKS5 port.
    Socks {
        /// The proxy.
        proxy: SocketAddr,
        /// The name, which the proxy resolves.
        name: String,
        /// The port.
        port: u16,
    },
}

impl Via {
    /// A connection.
    pub async fn connect(&self) -> Result<TcpStream> {
        timeout(DEADLINE, self.connect_now()).await.context("connect: timed out")?
    }

    async fn connect_now(&self) -> Result<TcpStream> {
        match self {
            Self::Address(address) => TcpStream::connect(address).await.context("connect"),
            Self::Socks { proxy, name, port } => socks(*proxy, name, *port).await,
        }
    }

    fn authority(&self) -> String {
        match self {
            Self::Address(address) => address.to_string(),
            Self::Socks { name, port: 80, .. } => name.clone(),
            Self::Socks { name, port, .. } => format!("{name}:{port}"),
        }
    }
}

/// RFC 1928, without authentication, by name.
async fn socks(proxy: SocketAddr, name: &str, port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(proxy).await.context("connect to the SOCKS port")?;
    let mut greeting = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(name.len())?];
    greeting.extend_from_slice(name.as_bytes());
    greeting.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&greeting).await.context("socks: write")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.context("socks: the proxy closed")?;
    match answer {
        [5, 0, 5, 0, _, 1, ..] => Ok(stream),
        [5, 0, 5, code, ..] => bail!("socks: reply {code}"),
        other => bail!("socks: not understood: {other:?}"),
    }
}

/// A request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Besides `host` and `content-length`.
    pub headers: Vec<(String, String)>,
    /// Empty: none.
    pub body: Vec<u8>,
}

impl Request {
    /// A GET.
    pub fn get(path: &str) -> Self {
        Self { method: "GET".to_owned(), path: path.to_owned(), ..Self::default() }
    }

    /// A POST.
    pub fn post(path: &str, body: &[u8]) -> Self {
        Self { method: "POST".to_owned(), path: path.to_owned(), body: body.to_vec(), ..Self::default() }
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// An answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's first value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// Its code, if Hawser refused.
    pub fn refusal(&self) -> Option<&str> {
        self.header(hawser_api::labels::HEADER_REFUSAL)
    }

    /// In a word or two, for reports.
    pub fn summary(&self) -> String {
        match self.refusal() {
            Some(code) => format!("status {} {code}", self.status),
            None => format!("status {}", self.status),
        }
    }
}

/// A connection that is kept alive.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
    authority: String,
}

impl Connection {
    /// Connects.
    pub async fn open(via: &Via) -> Result<Self> {
        Ok(Self { stream: BufReader::new(via.connect().await?), authority: via.authority() })
    }

    /// Sends one request and reads its whole answer.
    pub async fn send(&mut self, request: &Request) -> Result<Answer> {
        timeout(DEADLINE, self.send_now(request)).await.context("request: timed out")?
    }

    async fn send_now(&mut self, request: &Request) -> Result<Answer> {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", request.method, request.path, self.authority);
        for (name, value) in &request.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !request.body.is_empty() {
            head += &format!("content-length: {}\r\n", request.body.len());
        }
        head += "\r\n";
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&request.body);
        self.stream.write_all(&bytes).await.context("request: write")?;
        let mut answer = self.head().await?;
        while answer.status / 100 == 1 {
            answer = self.head().await?;
        }
        if request.method != "HEAD" && !matches!(answer.status, 204 | 304) {
            answer.body = self.body(&answer).await?;
        }
        Ok(answer)
    }

    async fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await.context("response: read")? == 0 {
            bail!("response: closed");
        }
        Ok(line.trim_end().to_owned())
    }

    async fn head(&mut self) -> Result<Answer> {
        let status = self.line().await?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let mut answer = Answer { status: code.with_context(|| format!("not HTTP: {status}"))?, ..Answer::default() };
        loop {
            let line = self.line().await?;
            let Some((name, value)) = line.split_once(':') else { break };
            answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(answer)
    }

    async fn body(&mut self, answer: &Answer) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        if let Some(length) = answer.header("content-length") {
            body.resize(length.parse().context("content-length")?, 0);
            self.stream.read_exact(&mut body).await.context("response body: closed early")?;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let size = usize::from_str_radix(self.line().await?.split(';').next().unwrap_or_default(), 16)?;
                let mut chunk = vec![0; size];
                self.stream.read_exact(&mut chunk).await.context("response chunk: closed early")?;
                body.append(&mut chunk);
                while !self.line().await?.is_empty() {}
                if size == 0 {
                    break;
                }
            }
        } else {
            self.stream.read_to_end(&mut body).await.context("response body")?;
        }
        Ok(body)
    }
}

/// One request on a connection of its own.
pub async fn call(via: &Via, request: &Request) -> Result<Answer> {
    Connection::open(via).await?.send(request).await
}

/// One request straight to an address.
pub async fn direct(address: SocketAddr, request: &Request) -> Result<Answer> {
    call(&Via::Address(address), &request.clone().header("connection", "close")).await
}
