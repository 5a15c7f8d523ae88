//! What a user reads when everything is ready: what runs, what can be called, and how to try it.

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::fabric::{Declared, Fabric};
use crate::state::State;
use crate::{admin, print};

/// Mirrors arrive a moment after the daemons are ready.
const PATIENCE: Duration = Duration::from_secs(3);

/// Prints it.
pub(crate) async fn show(state: &State, fabric: &Fabric) {
    let mut text = String::new();
    for declared in fabric.values() {
        cluster(&mut text, declared);
    }
    for declared in fabric.values() {
        callable(&mut text, state, declared).await;
    }
    let state = state.path().display();
    let _ = writeln!(text, "\n  {}", print::bold("Look inside"));
    for (command, what) in [
        ("hawser get links", "where the links stand"),
        ("hawser why west shop/stock", "what a name resolves to now, and why"),
        ("hawser check", "is everything as it should be"),
        ("hawser process kill east/gateway-0", "break something; `start` brings it back"),
    ] {
        let _ = writeln!(text, "    {:<50} {}", format!("{command} --state {state}"), print::dim(what));
    }
    print::out(format!("\n{}\n{text}", print::bold("hawser: all is serving")));
}

fn cluster(text: &mut String, declared: &Declared) {
    let spec = &declared.cluster.spec;
    let region = if spec.region.is_empty() { String::new() } else { format!(", {}", spec.region) };
    let _ = writeln!(text, "\n  {} ({}{region})", print::bold(&declared.name), declared.trust_domain);
    for gateway in &spec.gateways {
        let _ = writeln!(text, "    gateway {:<12} {} (UDP and TCP)", gateway.name, gateway.listen);
    }
    for proxy in &spec.proxies {
        let doors = [
            proxy.inbound.map(|at| format!("inbound {at}")),
            proxy.virtual_network.as_ref().map(|network| format!("names on {network}")),
            proxy.socks.map(|at| format!("SOCKS5 {at}")),
            proxy.dns.map(|at| format!("DNS {at}")),
        ];
        let doors: Vec<_> = doors.into_iter().flatten().collect();
        let account = format!("{}/{}", proxy.namespace, proxy.service_account);
        let _ = writeln!(text, "    proxy   {:<12} {account}: {}", proxy.name, doors.join(", "));
    }
}

/// What one cluster's applications can call, as the proxy with the most doors knows it.
async fn callable(text: &mut String, state: &State, declared: &Declared) {
    let proxies = &declared.cluster.spec.proxies;
    let Some(proxy) = proxies.iter().find(|proxy| proxy.virtual_network.is_some()) else { return };
    let rows = destinations(state, declared, proxy.name.as_str()).await;
    let Some(first) = rows.iter().find(|row| row.from != declared.name.as_str()).or(rows.first()) else { return };
    let _ =
        writeln!(text, "\n  {}", print::bold(format!("What {} calls, by way of proxy {}", declared.name, proxy.name)));
    for row in &rows {
        let _ = writeln!(text, "    {:<52} {:<22} {}", format!("{}:{}", row.name, row.port), row.bound, row.from);
    }
    let _ = writeln!(text, "\n  {}", print::bold("Try it"));
    let _ = writeln!(text, "    curl http://{}/", first.bound);
    if let Some(socks) = proxy.socks {
        let _ = writeln!(text, "    curl --proxy socks5h://{socks} http://{}:{}/", first.name, first.port);
    }
    if let Some(dns) = proxy.dns {
        let _ = writeln!(text, "    dig @{} -p {} {} +short", dns.ip(), dns.port(), first.name);
    }
}

struct Row {
    name: String,
    port: u64,
    bound: String,
    from: String,
}

async fn destinations(state: &State, declared: &Declared, proxy: &str) -> Vec<Row> {
    let Ok(cluster) = state.cluster(&declared.name) else { return Vec::new() };
    let started = Instant::now();
    loop {
        let mut found = Vec::new();
        if let Some(run) = admin::run_file(&cluster.run_file(&format!("proxy-{proxy}"))) {
            found = run.page("/destinations").await.map(|page| rows(&page)).unwrap_or_default();
        }
        let has_remote = found.iter().any(|row| row.from != declared.name.as_str());
        if has_remote || started.elapsed() > PATIENCE {
            return found;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

fn rows(page: &Value) -> Vec<Row> {
    let list = |value: &Value, name: &str| value.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |value: &Value, name: &str| value.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
    let mut rows = Vec::new();
    for destination in list(page, "destinations") {
        let Some(name) = list(&destination, "dnsNames").first().and_then(Value::as_str).map(str::to_owned) else {
            continue;
        };
        let mut from: Vec<_> = list(&destination, "tiers")
            .iter()
            .flat_map(|tier| list(tier, "backends"))
            .map(|backend| text(&backend, "cluster"))
            .collect();
        from.dedup();
        for port in list(&destination, "ports") {
            rows.push(Row {
                name: name.clone(),
                port: port.get("port").and_then(Value::as_u64).unwrap_or(0),
                bound: text(&port, "bound"),
                from: from.join(", "),
            });
        }
    }
    rows
}
