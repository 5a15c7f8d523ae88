//! Long TCP transfers through an echo server, every byte checked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{Context as Hash, SHA256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::Via;

/// Sent at once; a pause follows.
const CHUNK: usize = 8 * 1024;
/// Some 400 kB a second: enough to be in the middle of something at any moment, little enough that a dozen transfers
/// do not use up a small machine, whose want of time would then be what is measured.
const PAUSE: Duration = Duration::from_millis(20);
/// After its end was sent, the rest of the echo must come within this.
const LAST: Duration = Duration::from_secs(10);

/// A running transfer.
#[derive(Debug)]
pub struct Transfer {
    received: Arc<AtomicU64>,
    stop: CancellationToken,
    task: JoinHandle<Outcome>,
}

/// How a transfer ended.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes that came back, each as it was sent.
    pub received: u64,
    /// When it ended.
    pub at: Instant,
    /// That all came back with the right hash, or what went wrong. Wrong bytes say `corrupt`.
    pub result: Result<()>,
}

impl Transfer {
    /// Starts one that goes on until it is told to finish.
    pub async fn start(via: &Via, seed: u64) -> Result<Self> {
        let stream = via.connect().await?;
        let received = Arc::new(AtomicU64::new(0));
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(stream, seed, stop.clone(), Arc::clone(&received)));
        Ok(Self { received, stop, task })
    }

    /// Bytes that came back so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Whether it has ended, by itself.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Half-closes, waits for the rest of the echo, and tells how it went.
    pub async fn finish(self) -> Result<Outcome> {
        self.stop.cancel();
        Ok(self.task.await?)
    }
}

async fn run(mut stream: TcpStream, seed: u64, stop: CancellationToken, received: Arc<AtomicU64>) -> Outcome {
    let (mut from, mut to) = stream.split();
    let write = async {
        let mut content = Content::new(seed);
        let mut hash = Hash::new(&SHA256);
        let mut chunk = vec![0; CHUNK];
        let mut sent = 0;
        while !stop.is_cancelled() {
            content.fill(&mut chunk);
            hash.update(&chunk);
            to.write_all(&chunk).await.context("write")?;
            sent += CHUNK as u64;
            tokio::time::sleep(PAUSE).await;
        }
        to.shutdown().await.context("shutdown")?;
        Ok::<_, anyhow::Error>((sent, hash.finish()))
    };
    let read = async {
        let mut content = Content::new(seed);
        let mut hash = Hash::new(&SHA256);
        let (mut chunk, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
        loop {
            let n = tokio::select! {
                n = from.read(&mut chunk) => n.context("read")?,
                () = deadline(&stop) => anyhow::bail!("the rest of the echo did not come within {LAST:?}"),
            };
            let (got, want) = (chunk.get(..n).unwrap_or_default(), expected.get_mut(..n).unwrap_or_default());
            content.fill(want);
            let at = received.load(Ordering::Relaxed);
            ensure!(got == want, "corrupt: other bytes came back than were sent, after {at}");
            hash.update(got);
            received.fetch_add(n as u64, Ordering::Relaxed);
            if n == 0 {
                return Ok(hash.finish());
            }
        }
    };
    let ended = tokio::try_join!(write, read);
    let received = received.load(Ordering::Relaxed);
    let result = ended.and_then(|((sent, before), after)| {
        ensure!(sent == received, "cut short: {sent} bytes were sent and {received} came back before the end");
        ensure!(before.as_ref() == after.as_ref(), "corrupt: the hash is another");
        Ok(())
    });
    Outcome { received, at: Instant::now(), result }
}

async fn deadline(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST).await;
}

/// Bytes that look random and follow from the seed alone, however they are cut into pieces.
struct Content {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Content {
    fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, word: [0; 8], used: 8 }
    }

    fn fill(&mut self, into: &mut [u8]) {
        for byte in into {
            if self.used == 8 {
                // xorshift64 (Marsaglia 2003).
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                self.word = self.state.to_le_bytes();
                self.used = 0;
            }
            *byte = self.word.get(self.used).copied().unwrap_or_default();
            self.used += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::servers::Server;

    #[test]
    fn content_does_not_depend_on_how_it_is_cut() {
        let (mut whole, mut parts) = (vec![0; 100], vec![0; 100]);
        Content::new(7).fill(&mut whole);
        let mut content = Content::new(7);
        for part in parts.chunks_mut(7) {
            content.fill(part);
        }
        assert_eq!(whole, parts);
    }

    #[tokio::test]
    async fn a_transfer_through_a_plain_echo_server_is_intact() {
        let server = Server::echo("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let transfer = Transfer::start(&Via::Address(server.address()), 1).await.unwrap();
        crate::eventually("some bytes", async || {
            ensure!(transfer.received() > 100_000);
            Ok(())
        })
        .await
        .unwrap();
        transfer.finish().await.unwrap().result.unwrap();
    }

    #[tokio::test]
    async fn a_server_that_goes_away_is_told_as_an_error() {
        let server = Server::echo("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let transfer = Transfer::start(&Via::Address(server.address()), 1).await.unwrap();
        crate::eventually("some bytes", async || {
            ensure!(transfer.received() > 0);
            Ok(())
        })
        .await
        .unwrap();
        drop(server);
        crate::eventually("its end", async || {
            ensure!(transfer.has_ended());
            Ok(())
        })
        .await
        .unwrap();
        assert!(transfer.finish().await.unwrap().result.is_err());
    }
}
