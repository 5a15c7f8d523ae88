//! Calls as an application makes them: by name through the proxy's SOCKS5 port (RFC 1928), or to a virtual address.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::http::{self, Answer};
use crate::page::text;

/// What an application waits for one answer.
const DEADLINE: Duration = Duration::from_secs(5);
/// Callers at a time.
const CALLERS: usize = 4;
/// Until the answer is as it should be.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two calls of a caller that keeps calling.
const PACE: Duration = Duration::from_millis(10);

/// A name and port to call, and the proxy's door.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) socks: SocketAddr,
    pub(crate) name: String,
    pub(crate) port: u16,
}

impl Target {
    /// One GET.
    pub(crate) async fn get(&self) -> Result<Answer> {
        let socket = tokio::time::timeout(DEADLINE, connect(self)).await??;
        http::get(socket, &format!("{}:{}", self.name, self.port), "/", DEADLINE).await
    }

    /// Calls until an answer is as it should be; the error says what came last.
    pub(crate) async fn until(&self, good: impl Fn(&Answer) -> bool) -> Result<Answer> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.get().await;
            match answer {
                Ok(answer) if good(&answer) => return Ok(answer),
                last if Instant::now() > deadline => match last {
                    Ok(answer) => bail!("the last answer of {}: {}", self.name, summary(&answer)),
                    Err(error) => return Err(error.context(format!("calling {}", self.name))),
                },
                _ => sleep(PACE * 5).await,
            }
        }
    }

    /// Several callers call again and again for a while: one alone would always find the same instance the quickest.
    pub(crate) async fn keep_calling(&self, span: Duration) -> Tally {
        let deadline = Instant::now() + span;
        let tallies = futures_util::future::join_all((0..CALLERS).map(|_| self.one_caller(deadline))).await;
        tallies.into_iter().fold(Tally::default(), Tally::and)
    }

    /// Calls until somebody in particular has answered.
    pub(crate) async fn until_served_by(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tally = self.keep_calling(PACE * 10).await;
            if tally.by.keys().any(|who| wanted(who)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{} is answered by {:?} alone; {:?}", self.name, tally.by.keys(), tally.failed.first());
            }
        }
    }

    async fn one_caller(&self, deadline: Instant) -> Tally {
        let mut tally = Tally::default();
        while Instant::now() < deadline {
            let began = Instant::now();
            match self.get().await {
                Ok(answer) if answer.status.is_success() => {
                    tally.good += 1;
                    tally.last = Served::by(&answer);
                    *tally.by.entry(tally.last.to_string()).or_default() += 1;
                }
                Ok(answer) => tally.failed.push(summary(&answer)),
                Err(error) => tally.failed.push(format!("{error:#}")),
            }
            tally.slowest = tally.slowest.max(began.elapsed());
            sleep(PACE).await;
        }
        tally
    }
}

/// GET to an address that the proxy bound.
pub(crate) async fn get_at(address: &str) -> Result<Answer> {
    let socket = tokio::time::timeout(DEADLINE, TcpStream::connect(address)).await??;
    http::get(socket, address, "/", DEADLINE).await
}

async fn connect(target: &Target) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(target.socks).await?;
    let length = u8::try_from(target.name.len())?;
    let mut request = vec![5, 1, 0, 5, 1, 0, 3, length];
    request.extend_from_slice(target.name.as_bytes());
    request.extend_from_slice(&target.port.to_be_bytes());
    socket.write_all(&request).await?;
    let mut reply = [0; 6];
    socket.read_exact(&mut reply).await?;
    let [5, 0, 5, code, 0, kind] = reply else { bail!("not a SOCKS5 reply: {reply:?}") };
    if code != 0 {
        bail!("the proxy refuses {}:{} (SOCKS5 code {code})", target.name, target.port);
    }
    let rest = if kind == 4 { 16 + 2 } else { 4 + 2 };
    let mut bound = vec![0; rest];
    socket.read_exact(&mut bound).await?;
    Ok(socket)
}

/// What came of many calls.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) good: u32,
    pub(crate) failed: Vec<String>,
    pub(crate) by: std::collections::BTreeMap<String, u32>,
    pub(crate) last: Served,
    pub(crate) slowest: Duration,
}

impl Tally {
    fn and(mut self, other: Self) -> Self {
        self.good += other.good;
        self.failed.extend(other.failed);
        for (who, count) in other.by {
            *self.by.entry(who).or_default() += count;
        }
        self.slowest = self.slowest.max(other.slowest);
        self.last = other.last;
        self
    }

    /// `212 calls, none failed, the slowest took 31 ms; checkout-1 in east 100, …`; an error if any failed.
    pub(crate) fn unharmed(&self) -> Result<String> {
        if let Some(first) = self.failed.first() {
            bail!(
                "{} of {} calls failed, the first: {first}",
                self.failed.len(),
                self.good as usize + self.failed.len()
            );
        }
        if self.good == 0 {
            bail!("no call was made");
        }
        let by: Vec<_> = self.by.iter().map(|(who, count)| format!("{who} {count}")).collect();
        Ok(format!("{} calls, none failed, slowest {} ms; {}", self.good, self.slowest.as_millis(), by.join(", ")))
    }
}

/// Who answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) name: String,
    pub(crate) cluster: String,
    /// Whom it took for the caller.
    pub(crate) client: String,
}

impl Served {
    /// From an answer of `hawser echo`.
    pub(crate) fn by(answer: &Answer) -> Self {
        let about: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        Self { name: text(&about, "name"), cluster: text(&about, "cluster"), client: text(&about, "client") }
    }
}

impl std::fmt::Display for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.name, self.cluster)
    }
}

/// `403 not_exported: hawser: …`, for people.
pub(crate) fn summary(answer: &Answer) -> String {
    let body = String::from_utf8_lossy(&answer.body);
    let refusal = answer.header(hawser_api::labels::HEADER_REFUSAL);
    let lines = body.lines().take(2).collect::<Vec<_>>().join("; ");
    format!("{} {refusal} {lines}", answer.status.as_u16())
}
