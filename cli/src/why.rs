//! `hawser why`: what a name resolves to now, as the cluster's proxies know it.

use anyhow::{Result, bail};
use hawser_api::{ClusterName, ServiceKey};
use serde_json::{Value, json};

use crate::page::{at, is, list, number, rows, service, text};
use crate::print::{self, Output, bold, dim};
use crate::state::{State, StateArg};
use crate::{admin, columns};

/// Explain what a name resolves to now: address, tiers, link, gateway, transport, and which endpoints are in or out.
///
/// Asks the cluster's proxies, each of which decides for itself; where they agree, once is enough.
#[derive(Debug, clap::Args)]
pub(crate) struct Why {
    /// The cluster that calls.
    cluster: ClusterName,
    /// The service, as the caller names it: namespace/name, such as shop/checkout-east, or a DNS name.
    #[arg(value_name = "NAMESPACE/NAME")]
    name: String,
    #[command(flatten)]
    state: StateArg,
    /// Ask this proxy only.
    #[arg(long, value_name = "NAME")]
    proxy: Option<String>,
    /// How to show it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

/// What one proxy says.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) proxy: String,
    pub(crate) destination: Value,
}

/// Asks and shows.
pub(crate) async fn run(args: &Why) -> Result<()> {
    let state = State::existing(&args.state.state)?;
    let said = ask(&state, &args.cluster, &args.name, args.proxy.as_deref()).await?;
    if matches!(args.output, Output::Json | Output::Yaml) {
        let all: Vec<_> = said
            .iter()
            .map(|said| json!({ "cluster": args.cluster, "proxy": said.proxy, "destination": said.destination }))
            .collect();
        print::out(print::value(&json!({ "answers": all }), args.output)?);
        return Ok(());
    }
    for said in &said {
        print::out(explain(said));
    }
    Ok(())
}

/// What the proxies of a cluster say about a name: first those that applications call through.
pub(crate) async fn ask(state: &State, cluster: &ClusterName, name: &str, proxy: Option<&str>) -> Result<Vec<Said>> {
    let mut runs = admin::runs(state, cluster, Some("proxy"))?;
    runs.retain(|run| proxy.is_none_or(|proxy| run.name == proxy));
    if runs.is_empty() {
        bail!("no proxy of {cluster} runs on {}\nhint: hawser check --cluster {cluster}", state.path().display());
    }
    let mut said = Vec::new();
    let mut known = std::collections::BTreeSet::new();
    let mut failed = Vec::new();
    for run in &runs {
        match run.page("/destinations").await {
            Err(error) => failed.push(format!("{error:#}")),
            Ok(page) => {
                for destination in rows(&page, "destinations") {
                    known.insert(service(&destination));
                    if is_meant(&destination, name) {
                        said.push(Said { proxy: run.label(), destination });
                    }
                }
            }
        }
    }
    if said.is_empty() && failed.len() == runs.len() {
        bail!("{}\nhint: hawser check --cluster {cluster}", failed.join("\n"));
    }
    if said.is_empty() {
        let known: Vec<_> = known.into_iter().collect();
        bail!("{cluster} knows no {name}\nhint: it knows {}", known.join(", "));
    }
    // Proxies without virtual addresses only serve; what they would do is not what a user sees.
    let has_address = |said: &Said| !text(&said.destination, "address").is_empty();
    if proxy.is_none() && said.iter().any(has_address) {
        said.retain(has_address);
    }
    Ok(said)
}

fn is_meant(destination: &Value, name: &str) -> bool {
    if name.parse::<ServiceKey>().is_ok() {
        return service(destination) == name;
    }
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    list(destination, "dnsNames").iter().any(|dns| dns.as_str() == Some(&name))
}

/// An explanation, top down.
pub(crate) fn explain(said: &Said) -> String {
    let Said { proxy, destination } = said;
    let mut lines = vec![format!("{} as {proxy} resolves it now", bold(service(destination)))];
    lines.push(format!("  names      {}", text(destination, "dnsNames").replace(',', ", ")));
    for port in list(destination, "ports") {
        lines.push(format!("  port {:<5} {}", text(port, "port"), bound(port)));
    }
    if let Some(refusal) = Some(at(destination, "unavailable")).filter(|refusal| !refusal.is_null()) {
        lines.push(format!("  refused    {}: {}", text(refusal, "code"), text(refusal, "message")));
        lines.push(format!("  hint       {}", text(refusal, "remedy")));
    }
    for (number, tier) in list(destination, "tiers").iter().enumerate() {
        let use_now = if is(tier, "inUse") { "in use" } else { "not in use now" };
        lines.push(format!("  tier {:<5} {use_now}", number + 1));
        for row in list(tier, "backends") {
            lines.extend(backend(row));
        }
    }
    lines.join("\n")
}

fn bound(port: &Value) -> String {
    let protocol = [text(port, "appProtocol"), text(port, "name")].into_iter().find(|text| !text.is_empty());
    let protocol = protocol.map(|protocol| format!(" ({protocol})")).unwrap_or_default();
    match (text(port, "bound").as_str(), text(port, "reason").as_str()) {
        ("", "") => format!("bound nowhere{protocol}; reached by SOCKS5"),
        ("", reason) => format!("bound nowhere{protocol}: {reason}"),
        (bound, "") => format!("{bound}{protocol}"),
        (bound, reason) => format!("{bound}{protocol}, not as asked: {reason}"),
    }
}

fn backend(row: &Value) -> Vec<String> {
    let place = if is(row, "local") { "here" } else { "through a gateway" };
    let region = Some(text(row, "region")).filter(|region| !region.is_empty()).map(|region| format!(", {region}"));
    let head = format!(
        "    {} {place}{}: {}, weight {}, {} endpoints ready",
        bold(text(row, "cluster")),
        region.unwrap_or_default(),
        text(row, "service"),
        text(row, "weight"),
        text(row, "endpointsReady"),
    );
    let mut lines = vec![head];
    lines.extend(list(row, "gateways").iter().map(gateway));
    lines.extend(list(row, "endpoints").iter().map(endpoint));
    let identities = text(row, "identities").replace(',', ", ");
    if !identities.is_empty() {
        lines.push(dim(format!("      must be {identities}")));
    }
    lines
}

fn gateway(row: &Value) -> String {
    let state = if is(row, "down") { "down" } else { "up" };
    format!("      gateway {} {} {state} {}", text(row, "name"), text(row, "address"), text(row, "transport"))
}

fn endpoint(row: &Value) -> String {
    let way = [text(row, "gateway"), text(row, "transport"), text(row, "address")];
    let way: Vec<_> = way.into_iter().filter(|part| !part.is_empty()).collect();
    let state = match (is(row, "in"), text(row, "reason")) {
        (true, _) => "in ".to_owned(),
        (false, reason) => format!("out ({reason})"),
    };
    let load = format!("{:.1} ms, {:.0} open", number(row, "ewmaMs"), number(row, "open"));
    format!("      {state} {} by {}, {load}", columns::short(&text(row, "id")), way.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination() -> Value {
        json!({
            "namespace": "shop", "name": "checkout-east", "address": "127.65.0.2",
            "dnsNames": ["checkout-east.shop.svc.cluster.local"],
            "ports": [{"port": 80, "bound": "127.65.0.2:10080", "reason": "permission denied", "appProtocol": "http"}],
            "tiers": [{"inUse": true, "backends": [{
                "cluster": "east", "local": false, "service": "shop/checkout", "weight": 1, "endpointsReady": 2,
                "endpoints": [
                    {"id": "a", "in": true, "gateway": "gateway-0", "transport": "quic", "ewmaMs": 1.25, "open": 3},
                    {"id": "b", "in": false, "reason": "3 failures in a row", "gateway": "gateway-1", "transport": "tcp"},
                ],
            }]}],
        })
    }

    #[test]
    fn an_explanation_names_gateway_transport_and_why_an_endpoint_is_out() {
        let text = explain(&Said { proxy: "west/proxy-web".into(), destination: destination() });
        for part in ["127.65.0.2:10080", "permission denied", "gateway-0 quic", "out (3 failures in a row)", "in use"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_name_is_meant_by_key_and_by_dns_name() {
        assert!(is_meant(&destination(), "shop/checkout-east"));
        assert!(is_meant(&destination(), "Checkout-East.shop.svc.cluster.local."));
        assert!(!is_meant(&destination(), "shop/checkout"));
    }
}
