//! One measurement from the client's end of a chain, printed as one JSON object.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::serve::{BLOCK, LAST, UPLOAD};

/// What to measure.
#[derive(Subcommand)]
pub(crate) enum Kind {
    /// Uploads as fast as it goes: `{"bytes":…,"seconds":…}`.
    Bulk {
        #[arg(long)]
        streams: usize,
        #[arg(long)]
        seconds: f64,
    },
    /// Opens connections, one byte there and back each: `{"connections":…,"seconds":…}`.
    Connections {
        #[arg(long)]
        workers: usize,
        #[arg(long)]
        seconds: f64,
    },
    /// One connection after the other: `{"p50_us":…,"p99_us":…}` from connect to the first byte back.
    FirstByte {
        #[arg(long)]
        count: usize,
    },
    /// HTTP/1.1 GETs at a fixed rate; latency counts from when a request was due: `{"p50_ms":…,"p99_ms":…,"failed":…}`.
    HttpRate {
        #[arg(long)]
        rate: f64,
        #[arg(long)]
        seconds: f64,
        #[arg(long)]
        connections: usize,
    },
    /// Opens connections, one byte there and back each, prints `{"open":…}` and holds them until stdin ends.
    Idle {
        #[arg(long)]
        count: usize,
    },
}

const PATIENCE: Duration = Duration::from_secs(30);

/// Measures and prints.
#[expect(clippy::print_stdout, reason = "the measurement is this command's output")]
pub(crate) fn run(to: SocketAddr, kind: &Kind) -> Result<()> {
    let value = match *kind {
        Kind::Bulk { streams, seconds } => bulk(to, streams, seconds)?,
        Kind::Connections { workers, seconds } => connections(to, workers, seconds)?,
        Kind::FirstByte { count } => first_byte(to, count)?,
        Kind::HttpRate { rate, seconds, connections } => http_rate(to, rate, seconds, connections)?,
        Kind::Idle { count } => return idle(to, count),
    };
    println!("{value}");
    Ok(())
}

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&to, PATIENCE)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// A connection over which one byte went there and back.
fn touched(to: SocketAddr) -> std::io::Result<TcpStream> {
    let mut socket = connect(to)?;
    socket.write_all(b"e")?;
    let mut byte = [0];
    socket.read_exact(&mut byte)?;
    Ok(socket)
}

fn bulk(to: SocketAddr, streams: usize, seconds: f64) -> Result<Value> {
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(seconds);
    let threads: Vec<_> = (0..streams).map(|_| std::thread::spawn(move || upload(to, until))).collect();
    let mut bytes = 0;
    for thread in threads {
        bytes += thread.join().map_err(|_| anyhow::anyhow!("an uploader panicked"))??;
    }
    Ok(json!({"bytes": bytes, "seconds": start.elapsed().as_secs_f64()}))
}

fn upload(to: SocketAddr, until: Instant) -> Result<u64> {
    let mut socket = connect(to)?;
    socket.write_all(&[UPLOAD])?;
    let mut block = vec![0x5a; BLOCK];
    let mut sent = 0_u64;
    let mut last = false;
    while !last {
        last = Instant::now() >= until;
        if let Some(first) = block.first_mut().filter(|_| last) {
            *first = LAST;
        }
        socket.write_all(&block)?;
        sent += block.len() as u64;
    }
    let mut count = [0; 8];
    socket.read_exact(&mut count)?;
    let received = u64::from_be_bytes(count);
    if received != sent {
        bail!("{sent} bytes were sent and {received} arrived");
    }
    Ok(sent)
}

fn connections(to: SocketAddr, workers: usize, seconds: f64) -> Result<Value> {
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(seconds);
    let done = Arc::new(AtomicU64::new(0));
    let failed = Arc::new(AtomicU64::new(0));
    let work = |done: Arc<AtomicU64>, failed: Arc<AtomicU64>| {
        move || {
            while Instant::now() < until {
                let counter = if touched(to).is_ok() { &done } else { &failed };
                counter.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let threads: Vec<_> =
        (0..workers).map(|_| std::thread::spawn(work(Arc::clone(&done), Arc::clone(&failed)))).collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a connector panicked"))?;
    }
    let (done, failed) = (done.load(Ordering::Relaxed), failed.load(Ordering::Relaxed));
    Ok(json!({"connections": done, "failed": failed, "seconds": start.elapsed().as_secs_f64()}))
}

fn first_byte(to: SocketAddr, count: usize) -> Result<Value> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        let socket = touched(to)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        drop(socket);
    }
    Ok(json!({"p50_us": percentile(&mut times, 0.5), "p99_us": percentile(&mut times, 0.99)}))
}

/// The value below which this share of the values lies.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index inside the slice")]
    let index = ((values.len().saturating_sub(1)) as f64 * share).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

fn http_rate(to: SocketAddr, rate: f64, seconds: f64, connections: usize) -> Result<Value> {
    let gap = Duration::from_secs_f64(connections as f64 / rate);
    let start = Instant::now() + Duration::from_millis(50);
    let until = start + Duration::from_secs_f64(seconds);
    let times = Arc::new(Mutex::new(Vec::new()));
    let failed = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..connections)
        .map(|index| {
            let first = start + gap.mul_f64(index as f64 / connections as f64);
            let (times, failed) = (Arc::clone(&times), Arc::clone(&failed));
            std::thread::spawn(move || {
                let (mine, errors) = paced_gets(to, first, gap, until);
                failed.fetch_add(errors, Ordering::Relaxed);
                if let Ok(mut all) = times.lock() {
                    all.extend(mine);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?;
    }
    let mut times = times.lock().map_err(|_| anyhow::anyhow!("a client panicked"))?.clone();
    let requests = times.len();
    let (p50, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
    Ok(json!({"p50_ms": p50, "p99_ms": p99, "requests": requests, "failed": failed.load(Ordering::Relaxed)}))
}

/// GETs on one connection, each at its time or, when late, at once; milliseconds from when each was due.
fn paced_gets(to: SocketAddr, first: Instant, gap: Duration, until: Instant) -> (Vec<f64>, u64) {
    let mut times = Vec::new();
    let mut failed = 0;
    let mut due = first;
    let mut connection = None;
    while due < until {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let reader = match connection.take() {
            Some(reader) => Ok(reader),
            None => connect(to).map(BufReader::new),
        };
        match reader.and_then(get) {
            Ok(reader) => {
                times.push(due.elapsed().as_secs_f64() * 1e3);
                connection = Some(reader);
            }
            Err(_) => failed += 1,
        }
        due += gap;
    }
    (times, failed)
}

fn get(mut reader: BufReader<TcpStream>) -> std::io::Result<BufReader<TcpStream>> {
    reader.get_mut().write_all(b"GET /1k HTTP/1.1\r\nhost: bench\r\n\r\n")?;
    let bad = |what: &str| std::io::Error::other(what.to_owned());
    let mut length = None;
    let mut line = String::new();
    let mut status_is_200 = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Err(bad("closed"));
        }
        status_is_200.get_or_insert_with(|| line.starts_with("HTTP/1.1 200"));
        let lower = line.to_ascii_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse::<u64>().ok();
        }
        if line == "\r\n" {
            break;
        }
    }
    let length = length.ok_or_else(|| bad("no content-length"))?;
    std::io::copy(&mut (&mut reader).take(length), &mut std::io::sink())?;
    if status_is_200 == Some(true) { Ok(reader) } else { Err(bad("not 200")) }
}

#[expect(clippy::print_stdout, reason = "the measurement is this command's output")]
fn idle(to: SocketAddr, count: usize) -> Result<()> {
    let held = (0..count).map(|_| touched(to)).collect::<std::io::Result<Vec<_>>>()?;
    println!("{}", json!({"open": held.len()}));
    std::io::stdout().flush()?;
    let mut rest = String::new();
    std::io::stdin().read_to_string(&mut rest)?;
    Ok(())
}
