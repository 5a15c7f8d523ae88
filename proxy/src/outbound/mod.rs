//! What applications send: detected, routed, balanced, dialled and carried.
//!
//! ```text
//! carry ─ detect ─┬─ http ── exchange (one try on one session) ── answer (the way back) ─▶ app
//!                 │    └──── upgrade (WebSocket, CONNECT: HTTP/1.1 inside a stream)
//!                 └─ tcp ─── a stream of a shared session │ a dedicated session (bulk decides)
//! target   a destination's port: plan, retry budget, what connections carried
//! ```

mod answer;
pub(crate) mod bulk;
mod connect;
mod dedicated;
mod exchange;
mod http;
mod io;
pub mod page;
pub(crate) mod retry;
pub(crate) mod target;
mod tcp;
mod trip;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};

use tokio::net::TcpStream;

use crate::context::Context;
use crate::detect::{self, Hint, Protocol};
use crate::table::Destination;
use target::Target;

/// An application's connection.
#[derive(Debug)]
struct App {
    context: Arc<Context>,
    target: Arc<Target>,
    client: SocketAddr,
    /// HTTP requests that have not been answered to their end.
    in_flight: AtomicU32,
    /// It is no HTTP connection any more.
    switched: AtomicBool,
}

/// Carries one connection of an application to a destination's port, until it ends.
pub async fn carry(
    context: Arc<Context>,
    destination: Arc<Destination>,
    port: u16,
    mut app: TcpStream,
    client: SocketAddr,
) {
    let target = context.sessions.target(&context, &destination, port);
    let hint = destination
        .ports
        .iter()
        .find(|p| p.number == port && !p.udp)
        .map_or(Hint::Opaque, |p| detect::hint(&p.app_protocol, port));
    // Without it a small answer waits for the acknowledgement of the one before.
    let _ = app.set_nodelay(true);
    let (protocol, early) = match detect::read(&mut app, hint, context.settings.detect).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%client, destination = &*target.label, %error, "the application hung up");
            return;
        }
    };
    let from =
        Arc::new(App { context, target, client, in_flight: AtomicU32::new(0), switched: AtomicBool::new(false) });
    match protocol {
        Protocol::Opaque => tcp::carry(&from, app, early).await,
        Protocol::Http1 => http::carry1(from, io::AppIo::new(app, early)).await,
        Protocol::Http2 => http::carry2(from, io::AppIo::new(app, early)).await,
    }
}
