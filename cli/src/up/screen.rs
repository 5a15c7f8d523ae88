//! What a user reads when everything is ready: what runs, what can be called, and how to try it.

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::fabric::{Declared, Fabric};
use crate::page::{self, list, text};
use crate::state::State;
use crate::{admin, print};

/// Mirrors arrive a moment after the daemons are ready.
const PATIENCE: Duration = Duration::from_secs(3);

/// Prints it.
pub(crate) async fn show(state: &State, fabric: &Fabric) {
    let mut text = String::new();
    for declared in fabric.values().rev() {
        cluster(&mut text, declared);
    }
    let mut first = None;
    for declared in fabric.values().rev() {
        let found = callable(&mut text, state, declared).await;
        first = first.or(found);
    }
    text.push_str(&first.unwrap_or_default());
    let state = state.path().display();
    let _ = writeln!(text, "\n  {}", print::bold("Look inside"));
    for (command, what) in [
        ("hawser get links", "where the links stand"),
        ("hawser check", "is everything as it should be"),
        ("hawser process status", "what runs; kill something, and `start` it again"),
    ] {
        let _ = writeln!(text, "    {:<58} {}", format!("{command} --state {state}"), print::dim(what));
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

/// What one cluster's applications can call, as its first proxy with virtual addresses knows it; and how to try it.
async fn callable(text: &mut String, state: &State, declared: &Declared) -> Option<String> {
    let proxy = declared.cluster.spec.proxies.iter().find(|proxy| proxy.virtual_network.is_some())?;
    let rows = destinations(state, declared, proxy.name.as_str()).await;
    let first = rows.iter().find(|row| row.from != declared.name.as_str()).or(rows.first())?;
    let _ =
        writeln!(text, "\n  {}", print::bold(format!("What {} calls, by way of proxy {}", declared.name, proxy.name)));
    for row in &rows {
        let _ = writeln!(text, "    {:<52} {:<22} {}", format!("{}:{}", row.name, row.port), row.bound, row.from);
    }
    let mut try_it =
        format!("\n  {}\n    curl http://{}/\n", print::bold(format!("Try it, from {}", declared.name)), first.bound);
    if let Some(socks) = proxy.socks {
        let _ = writeln!(try_it, "    curl --proxy socks5h://{socks} http://{}:{}/", first.name, first.port);
    }
    if let Some(dns) = proxy.dns {
        let _ = writeln!(try_it, "    dig @{} -p {} {} +short", dns.ip(), dns.port(), first.name);
    }
    let key = &first.key;
    let why = format!("hawser why {} {key} --state {}", declared.name, state.path().display());
    let _ = writeln!(try_it, "    {why}   {}", print::dim("what the name resolves to now, and why"));
    Some(try_it)
}

struct Row {
    name: String,
    port: String,
    bound: String,
    from: String,
    key: String,
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
    let mut rows = Vec::new();
    for destination in page::rows(page, "destinations") {
        let backends = list(&destination, "tiers").iter().flat_map(|tier| list(tier, "backends"));
        let mut from: Vec<_> = backends.map(|backend| text(backend, "cluster")).collect();
        from.dedup();
        // A service of several clusters is best known by the name that it has in all of them.
        let names: Vec<_> = list(&destination, "dnsNames").iter().filter_map(Value::as_str).collect();
        let shared = names.iter().find(|name| from.len() > 1 && name.ends_with("clusterset.local"));
        let Some(name) = shared.or(names.first()) else { continue };
        for port in list(&destination, "ports") {
            rows.push(Row {
                name: (*name).to_owned(),
                key: page::service(&destination),
                port: text(port, "port"),
                bound: text(port, "bound"),
                from: from.join(", "),
            });
        }
    }
    rows
}
