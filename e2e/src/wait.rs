//! Waiting for conditions, never for luck.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const PAUSE: Duration = Duration::from_millis(50);

/// Tries until it succeeds; after `limit` the last failure is the error. Returns how long it took.
pub async fn within<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<(T, Duration)> {
    let begun = Instant::now();
    let mut last = None;
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            break;
        }
        match tokio::time::timeout(left, attempt()).await {
            Ok(Ok(value)) => return Ok((value, begun.elapsed())),
            Ok(Err(error)) => last = Some(error),
            Err(_) if last.is_none() => last = Some(anyhow::anyhow!("the attempt hung")),
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
    match last {
        Some(error) => Err(error.context(format!("waited {limit:?} for {what}"))),
        None => bail!("waited {limit:?} for {what}"),
    }
}

/// The same with a generous limit, where no bound is under test.
pub async fn eventually<T>(what: &str, attempt: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    Ok(within(Duration::from_secs(20), what, attempt).await?.0)
}
