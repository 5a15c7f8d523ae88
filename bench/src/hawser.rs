//! Hawser's chain: two clusters of one gateway and one proxy each, run by `hawser up` as anybody would.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::chain::{Chain, Entries, Origin, Roles};
use crate::process::{PROXY_CORE, Running, free_address};

/// Starts a fabric whose only link uses this transport.
pub(crate) fn chain(name: &'static str, transport: &str, binary: &Path, origin: &Origin) -> Result<Chain> {
    let root = origin.dir.path().join(name);
    let (fabric, state, ready) = (root.join("fabric"), root.join("state"), root.join("ready"));
    let west_gateway = free_address("127.0.0.1")?;
    let east_gateway = free_address("127.0.0.1")?;
    // A network of its own for each fabric, so that both can run side by side.
    let network = if transport == "quic" { "127.66.0" } else { "127.65.0" };
    let west = west(transport, network, west_gateway, east_gateway);
    let east = east(transport, east_gateway, west_gateway, origin)?;
    for (cluster, text) in [("west", west), ("east", east)] {
        std::fs::create_dir_all(fabric.join(cluster))?;
        std::fs::write(fabric.join(cluster).join("cluster.yaml"), text)?;
    }
    let arguments = [
        "HAWSER_THREADS=1".to_owned(),
        "HAWSER_LOG=warn".to_owned(),
        binary.canonicalize().context("the hawser binary is missing: cargo build --release")?.display().to_string(),
        "up".to_owned(),
        fabric.display().to_string(),
        "--state".to_owned(),
        state.display().to_string(),
        "--ready-file".to_owned(),
        ready.display().to_string(),
    ];
    let running = Running::start(PROXY_CORE, "env", &arguments, true)?;
    wait_until("the fabric to be ready", || ready.exists())?;
    let egress = run_file(&state, "west", "proxy", "client")?;
    let entries = mirrors(&egress)?;
    let pid = |cluster: &str, kind: &str, name: &str| -> Result<Vec<u32>> {
        let pid = run_file(&state, cluster, kind, name)?.get("pid").and_then(Value::as_u64).context("no pid")?;
        Ok(vec![u32::try_from(pid)?])
    };
    let roles = Roles {
        egress: pid("west", "proxy", "client")?,
        gateway: pid("east", "gateway", "gateway-0")?,
        inbound: pid("east", "proxy", "server")?,
    };
    Ok(Chain::new(name, entries, roles, vec![running]))
}

fn cluster(name: &str, gateway: SocketAddr, proxy: &str) -> String {
    format!(
        "apiVersion: hawser.dev/v1alpha1\nkind: Cluster\nmetadata: {{name: {name}}}\nspec:\n  region: {name}\n  \
         fabricDomain: bench.hawser\n  gateways:\n  - {{name: gateway-0, listen: \"{gateway}\"}}\n  proxies:\n  {proxy}\n"
    )
}

fn link(peer: &str, gateway: SocketAddr, transport: &str) -> String {
    format!(
        "---\napiVersion: hawser.dev/v1alpha1\nkind: Link\nmetadata: {{name: {peer}}}\nspec:\n  \
         trustDomain: {peer}.bench.hawser\n  transport: {transport}\n  gateways:\n  \
         - {{name: gateway-0, address: \"{gateway}\"}}\n"
    )
}

fn west(transport: &str, network: &str, own: SocketAddr, peer: SocketAddr) -> String {
    let proxy = format!("- {{name: client, namespace: bench, serviceAccount: client, virtualNetwork: {network}.0/24}}");
    cluster("west", own, &proxy) + &link("east", peer, transport)
}

fn east(transport: &str, own: SocketAddr, peer: SocketAddr, origin: &Origin) -> Result<String> {
    let inbound = free_address("127.0.0.1")?;
    let proxy = format!("- {{name: server, namespace: bench, serviceAccount: server, inbound: \"{inbound}\"}}");
    let mut text = cluster("east", own, &proxy) + &link("west", peer, transport);
    for (name, address, protocol, session) in [
        ("tcp", origin.tcp, "hawser.dev/opaque", "auto"),
        ("dedicated", origin.tcp, "hawser.dev/opaque", "dedicated"),
        ("http1", origin.http1, "http", "auto"),
        ("http2", origin.http2, "kubernetes.io/h2c", "auto"),
    ] {
        text += &format!(
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: bench\n  \
             labels: {{hawser.dev/export: \"true\"}}\n  annotations: {{hawser.dev/session: {session}}}\nspec:\n  \
             ports: [{{name: main, port: 8080, appProtocol: {protocol}}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  namespace: bench\n  \
             labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\nports: [{{name: main, port: {port}}}]\n\
             endpoints: [{{addresses: [\"{ip}\"], targetRef: {{kind: Proxy, name: server}}}}]\n",
            port = address.port(),
            ip = address.ip(),
        );
    }
    Ok(text)
}

fn run_file(state: &Path, cluster: &str, kind: &str, name: &str) -> Result<Value> {
    let path = state.join(cluster).join("run").join(format!("{kind}-{name}.json"));
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} is missing", path.display()))?;
    Ok(serde_json::from_str(&text)?)
}

/// Where the client's proxy bound the four mirrors, as its admin server says.
fn mirrors(egress: &Value) -> Result<Entries> {
    let admin = egress.get("admin").and_then(Value::as_str).context("no admin address")?.to_owned();
    let bound = |name: &str| -> Result<SocketAddr> {
        let name = format!("{name}-east");
        let mut found = None;
        wait_until(&format!("a virtual address for {name}"), || {
            found = page(&admin, "/listeners").ok().and_then(|listeners| find_bound(&listeners, &name));
            found.is_some()
        })?;
        found.context("no virtual address")
    };
    Ok(Entries { tcp: bound("tcp")?, dedicated: bound("dedicated")?, http1: bound("http1")?, http2: bound("http2")? })
}

fn find_bound(listeners: &Value, name: &str) -> Option<SocketAddr> {
    let rows = listeners.as_array().or_else(|| listeners.get("listeners").and_then(Value::as_array))?;
    let row = rows.iter().find(|row| row.get("name").and_then(Value::as_str) == Some(name))?;
    row.get("bound").and_then(Value::as_str)?.parse().ok()
}

/// A JSON page of an admin server.
fn page(admin: &str, path: &str) -> Result<Value> {
    use std::io::{Read, Write};
    let mut socket = std::net::TcpStream::connect(admin)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(socket, "GET {path} HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    socket.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").context("no body")?;
    Ok(serde_json::from_str(body)?)
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        if Instant::now() > deadline {
            bail!("waited 30 s for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
