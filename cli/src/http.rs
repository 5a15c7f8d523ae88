//! A small HTTP client for admin pages and for the demo: one request a connection, a deadline for all of it.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest body that is read.
const BODY_MAX: usize = 64 * 1024 * 1024;

/// What came back.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// A header's text, empty where it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }
}

/// GET over a connection that stands, HTTP/1.1, closed afterwards.
pub(crate) async fn get(socket: TcpStream, authority: &str, path: &str, deadline: Duration) -> Result<Answer> {
    tokio::time::timeout(deadline, exchange(socket, authority, path))
        .await
        .with_context(|| format!("no answer within {} ms", deadline.as_millis()))?
}

async fn exchange(socket: TcpStream, authority: &str, path: &str) -> Result<Answer> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let request = Request::get(path)
        .header(http::header::HOST, authority)
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, BODY_MAX).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
        anyhow::Ok(Answer { status: head.status, headers: head.headers, body })
    };
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end first, with the answer complete in memory.
        ended = connection => match answer.await {
            Ok(answer) => Ok(answer),
            Err(error) => Err(ended.err().map_or(error, anyhow::Error::new)),
        },
    }
}
