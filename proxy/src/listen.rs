//! The doors for applications: one listener for each port of each destination on its virtual address, opened and closed
//! as the tables change.
//!
//! A port below 1024 that may not be bound, or one that is in use, gets another, and [`Bound`] says which and why: it is
//! what status, DNS (SRV) and SOCKS go by.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hawser_api::ServiceKey;
use hawser_api::proto::discovery::Listener as ListenerStatus;
use ipnet::Ipv4Net;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::addresses::{self, Assignments, Wanted};
use crate::context::Context;
use crate::outbound;
use crate::table::Tables;

/// Application connections at a time, all doors together. Each costs two descriptors; the usual hard limit of a service
/// is some multiple of this, and beyond it the kernel's backlog holds callers back.
const CONNECTIONS: usize = 16_384;
/// Listeners at a time: one descriptor each.
const LISTENERS: usize = 4096;
/// What is added to a port that cannot be bound.
const SHIFT: u16 = 10_000;
/// Ports that could not be bound at all are tried again after this long.
const RETRY: Duration = Duration::from_secs(10);
/// After a failed accept (descriptors used up), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(50);

/// What is bound where.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Bound {
    /// Every destination that has an address.
    pub destinations: BTreeMap<ServiceKey, BoundDestination>,
    /// The other way round.
    pub by_address: HashMap<Ipv4Addr, ServiceKey>,
}

/// One destination's doors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundDestination {
    /// Its virtual address.
    pub address: Ipv4Addr,
    /// Why it is not the fixed one.
    pub problem: Option<String>,
    /// Its TCP ports.
    pub ports: Vec<BoundPort>,
}

/// One port's door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundPort {
    /// As the object names it.
    pub number: u16,
    /// What is bound; `None`: nothing could be.
    pub bound: Option<u16>,
    /// Why it differs; empty: as asked.
    pub reason: String,
}

impl BoundDestination {
    /// The declared number behind a number that a client used on the virtual address: the declared one, or its stand-in.
    pub fn declared(&self, number: u16) -> Option<u16> {
        let exact = self.ports.iter().find(|p| p.number == number);
        exact.or_else(|| self.ports.iter().find(|p| p.bound == Some(number))).map(|p| p.number)
    }
}

impl Bound {
    /// For the discovery status: every port of every destination.
    pub fn status(&self) -> Vec<ListenerStatus> {
        let of = |(key, destination): (&ServiceKey, &BoundDestination)| {
            let (key, address, problem) = (key.clone(), destination.address, destination.problem.clone());
            let row = move |port: &BoundPort| ListenerStatus {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                port: u32::from(port.number),
                bound: port.bound.map_or_else(String::new, |number| format!("{address}:{number}")),
                reason: [problem.as_deref().unwrap_or_default(), port.reason.as_str()]
                    .into_iter()
                    .filter(|r| !r.is_empty())
                    .collect::<Vec<_>>()
                    .join("; "),
            };
            destination.ports.iter().map(row).collect::<Vec<_>>()
        };
        self.destinations.iter().flat_map(of).collect()
    }

    /// The content of `/listeners`.
    pub fn page(&self) -> serde_json::Value {
        let row = |l: &ListenerStatus| {
            json!({
                "namespace": l.namespace,
                "name": l.name,
                "port": l.port,
                "bound": l.bound,
                "reason": l.reason,
            })
        };
        json!({ "listeners": self.status().iter().map(row).collect::<Vec<_>>() })
    }
}

/// Room for application connections, shared by all doors.
pub type Room = Arc<Semaphore>;

/// As many application connections as this process serves at a time.
pub fn room() -> Room {
    Arc::new(Semaphore::new(CONNECTIONS))
}

/// Keeps the listeners as the tables say, until the process drains.
pub struct Keeper {
    /// The proxy.
    pub context: Arc<Context>,
    /// From where addresses are taken.
    pub network: Ipv4Net,
    /// Where assignments outlive a restart.
    pub file: PathBuf,
    /// Connections at a time.
    pub room: Room,
    /// Told whenever something is bound or closed.
    pub bound: watch::Sender<Arc<Bound>>,
}

/// One listener: closed when dropped.
struct Open {
    address: Ipv4Addr,
    port: BoundPort,
    _close: tokio_util::sync::DropGuard,
}

impl Keeper {
    /// Runs until the process drains; then all doors close.
    pub async fn run(self) {
        let mut changed = self.context.tables_changed();
        let mut assignments = addresses::load(&self.file);
        let mut open: BTreeMap<(ServiceKey, u16), Open> = BTreeMap::new();
        loop {
            let loaded = *changed.borrow_and_update() > 0;
            let tables = self.context.tables_owned();
            let missing = self.reconcile(&tables, &mut assignments, &mut open);
            if loaded {
                self.context.process.set_ready("listening", true);
            }
            tokio::select! {
                () = self.context.process.drain.cancelled() => return,
                _ = changed.changed() => {}
                () = tokio::time::sleep(RETRY), if missing => {}
            }
        }
    }

    /// Says whether a port could not be bound.
    fn reconcile(
        &self,
        tables: &Tables,
        assignments: &mut Assignments,
        open: &mut BTreeMap<(ServiceKey, u16), Open>,
    ) -> bool {
        let wanted: Vec<_> =
            tables.destinations.values().map(|d| Wanted { key: &d.key, fixed: d.fixed_address }).collect();
        let assigned = addresses::assign(self.network, &wanted, assignments);
        if assigned.remembered != *assignments {
            assignments.clone_from(&assigned.remembered);
            if let Err(error) = addresses::save(&self.file, assignments) {
                tracing::warn!(file = %self.file.display(), %error, "virtual addresses cannot be kept over a restart");
            }
        }
        let plan = plan(tables, &assigned.addresses);
        open.retain(|door, listener| plan.get(door) == Some(&listener.address));
        let bind: Vec<_> = plan.iter().filter(|(door, _)| !open.contains_key(*door)).collect();
        // All declared numbers first: a stand-in must not take the number that another port of the service declares.
        let mut left = Vec::new();
        for ((key, number), address) in bind {
            match bind_one(SocketAddr::from((*address, *number)), open.len()) {
                Ok(listener) => self.open(open, (key, *number), listener, String::new()),
                Err(error) => left.push((key, *number, *address, error)),
            }
        }
        let mut reasons = BTreeMap::new();
        for (key, number, address, error) in left {
            match stand_in(address, number, open.len()) {
                Some(listener) => self.open(open, (key, number), listener, reason(number, &error)),
                None => {
                    reasons.insert((key.clone(), number), format!("{error}, and no other port either"));
                }
            }
        }
        let missing = !reasons.is_empty();
        self.publish(&assigned, &plan, open, &reasons);
        missing
    }

    fn open(
        &self,
        open: &mut BTreeMap<(ServiceKey, u16), Open>,
        door: (&ServiceKey, u16),
        listener: TcpListener,
        reason: String,
    ) {
        let Ok(SocketAddr::V4(at)) = listener.local_addr() else { return };
        let (key, number) = (door.0.clone(), door.1);
        if !reason.is_empty() {
            tracing::info!(service = %key, port = number, bound = %at, reason, "another port was bound");
        }
        let close = CancellationToken::new();
        let door = Door { context: self.context.clone(), key: key.clone(), port: number, room: self.room.clone() };
        let closed = close.clone();
        self.context.process.spawn(async move {
            closed.run_until_cancelled(door.serve(listener)).await;
        });
        let port = BoundPort { number, bound: Some(at.port()), reason };
        open.insert((key, number), Open { address: *at.ip(), port, _close: close.drop_guard() });
    }

    fn publish(
        &self,
        assigned: &addresses::Assigned,
        plan: &BTreeMap<(ServiceKey, u16), Ipv4Addr>,
        open: &BTreeMap<(ServiceKey, u16), Open>,
        reasons: &BTreeMap<(ServiceKey, u16), String>,
    ) {
        let mut bound = Bound::default();
        for (key, address) in &assigned.addresses {
            let problem = assigned.problems.get(key).cloned();
            let destination = BoundDestination { address: *address, problem, ports: Vec::new() };
            bound.destinations.insert(key.clone(), destination);
            bound.by_address.insert(*address, key.clone());
        }
        for door in plan.keys() {
            let Some(destination) = bound.destinations.get_mut(&door.0) else { continue };
            let refused =
                || BoundPort { number: door.1, bound: None, reason: reasons.get(door).cloned().unwrap_or_default() };
            destination.ports.push(open.get(door).map_or_else(refused, |o| o.port.clone()));
        }
        self.bound.send_if_modified(|now| {
            let differs = **now != bound;
            if differs {
                *now = Arc::new(bound);
            }
            differs
        });
    }
}

/// Which door goes to which address. Pure.
fn plan(tables: &Tables, addresses: &Assignments) -> BTreeMap<(ServiceKey, u16), Ipv4Addr> {
    let of = |(key, address): (&ServiceKey, &Ipv4Addr)| {
        let ports = tables.destinations.get(key).map(|d| d.ports.as_slice()).unwrap_or_default();
        let (key, address) = (key.clone(), *address);
        ports.iter().filter(|p| !p.udp).map(move |p| ((key.clone(), p.number), address))
    };
    addresses.iter().flat_map(of).collect()
}

fn bind_one(address: SocketAddr, open: usize) -> io::Result<TcpListener> {
    if open >= LISTENERS {
        return Err(io::Error::other(format!("this proxy has {LISTENERS} listeners already")));
    }
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Another port for one that cannot be bound: the number plus 10000, so that people can guess it, else any.
fn stand_in(address: Ipv4Addr, number: u16, open: usize) -> Option<TcpListener> {
    let shifted = number.checked_add(SHIFT).and_then(|n| bind_one(SocketAddr::from((address, n)), open).ok());
    shifted.or_else(|| bind_one(SocketAddr::from((address, 0)), open).ok())
}

fn reason(number: u16, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "port {number} needs a privilege: grant CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start"
            )
        }
        io::ErrorKind::AddrInUse => format!("port {number} is in use by another program"),
        _ => format!("port {number}: {error}"),
    }
}

/// One listener's accept loop.
struct Door {
    context: Arc<Context>,
    key: ServiceKey,
    port: u16,
    room: Room,
}

impl Door {
    async fn serve(self, listener: TcpListener) {
        loop {
            let Ok(place) = self.room.clone().acquire_owned().await else { return };
            let (app, client) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(service = %self.key, %error, "accept failed");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let Some(destination) = self.context.tables().destinations.get(&self.key).cloned() else {
                reset(&app);
                continue;
            };
            let carried = outbound::carry(self.context.clone(), destination, self.port, app, client);
            self.context.process.spawn(async move {
                carried.await;
                drop(place);
            });
        }
    }
}

/// Ends a connection with RST instead of FIN: nobody is to take it for an orderly end.
pub(crate) fn reset(socket: &TcpStream) {
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_needs_a_privilege_says_how_to_get_it() {
        let denied = reason(80, &io::ErrorKind::PermissionDenied.into());
        assert!(denied.contains("CAP_NET_BIND_SERVICE") && denied.contains("ip_unprivileged_port_start"), "{denied}");
        assert_eq!(reason(80, &io::ErrorKind::AddrInUse.into()), "port 80 is in use by another program");
    }

    #[test]
    fn a_declared_number_goes_before_a_stand_in_of_the_same_number() {
        let port = |number, bound| BoundPort { number, bound, reason: String::new() };
        let doors = BoundDestination {
            address: Ipv4Addr::new(127, 65, 0, 1),
            problem: None,
            ports: vec![port(80, Some(10_080)), port(10_080, Some(20_080)), port(443, None)],
        };
        for (used, declared) in
            [(80, Some(80)), (10_080, Some(10_080)), (20_080, Some(10_080)), (443, Some(443)), (1, None)]
        {
            assert_eq!(doors.declared(used), declared, "{used}");
        }
    }
}
