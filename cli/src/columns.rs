//! The columns of `hawser get`, a table a resource.

use serde_json::Value;

use crate::get::{Resource, gateways, gateways_alive, ready, round_trip};
use crate::page::{at, is, list, number, service, text};

/// One column.
pub(crate) struct Column {
    pub(crate) heading: &'static str,
    /// Only with `-o wide`.
    pub(crate) wide: bool,
    pub(crate) cell: fn(&Value) -> String,
}

const fn column(heading: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { heading, wide: false, cell }
}

const fn wide(heading: &'static str, cell: fn(&Value) -> String) -> Column {
    Column { heading, wide: true, cell }
}

/// A resource's columns.
pub(crate) fn of(resource: Resource) -> &'static [Column] {
    match resource {
        Resource::Links => LINKS,
        Resource::Exports => EXPORTS,
        Resource::Mirrors => MIRRORS,
        Resource::Endpoints => ENDPOINTS,
        Resource::Streams => STREAMS,
        Resource::Listeners => LISTENERS,
        Resource::Identities => IDENTITIES,
    }
}

const IN: Column = column("IN", |row| text(row, "inCluster"));
const SERVICE: Column = column("SERVICE", service);

const LINKS: &[Column] = &[
    IN,
    column("PEER", |row| text(row, "name")),
    column("READY", ready),
    column("GATEWAYS", gateways_alive),
    column("ROUND TRIP", round_trip),
    column("TRANSPORT", |row| {
        let mut used: Vec<_> = gateways(row).iter().filter(|g| is(g, "alive")).map(|g| text(g, "transport")).collect();
        used.sort();
        used.dedup();
        format!("{} ({})", used.join(","), text(row, "transport"))
    }),
    column("OFFERED", |row| status(row, "offered")),
    column("IMPORTED", |row| status(row, "imported")),
    column("REFUSED", |row| {
        let refused = [list(row, "status.refused"), list(row, "refused")];
        refused.into_iter().map(<[Value]>::len).sum::<usize>().to_string()
    }),
    wide("BUNDLE", |row| {
        let (source, sequence) = (text(row, "bundle.source"), text(row, "bundle.sequence"));
        let behind = number(row, "bundle.lag") > 0.0 || !text(row, "bundle.trouble").is_empty();
        let shown = if source == "own_root" { source } else { format!("{source} {sequence}") };
        format!("{shown}{}", if behind { " (behind)" } else { "" })
    }),
    wide("CLOCK", |row| match at(row, "clockAheadMs").as_f64() {
        Some(ms) => format!("{:+.1} s", ms / 1000.0),
        None => String::new(),
    }),
    wide("REGION", |row| text(row, "region")),
    wide("TRUST DOMAIN", |row| text(row, "trustDomain")),
];

fn status(row: &Value, field: &str) -> String {
    match text(row, &format!("status.{field}")) {
        text_of_status if !text_of_status.is_empty() => text_of_status,
        _ => text(row, field),
    }
}

const EXPORTS: &[Column] = &[
    IN,
    SERVICE,
    column("PORTS", |row| text(row, "ports")),
    column("TO", |row| [text(row, "to"), text(row, "clusters")].concat()),
    column("READY ENDPOINTS", |row| text(row, "endpointsReady")),
    column("READY", ready),
    column("FEDERATED", |row| text(row, "federated")),
    wide("BY", |row| text(row, "by")),
    wide("IMPORTED BY", |row| text(row, "importedBy")),
    wide("CONDITIONS", |row| {
        let condition = |c: &Value| format!("{}={}", text(c, "type"), text(c, "status"));
        list(row, "conditions").iter().map(condition).collect::<Vec<_>>().join(",")
    }),
];

const MIRRORS: &[Column] = &[
    IN,
    SERVICE,
    column("OF", |row| format!("{} {}", text(row, "cluster"), text(row, "service"))),
    column("PORTS", |row| text(row, "ports")),
    column("READY ENDPOINTS", |row| text(row, "endpointsReady")),
    column("STANDING", |row| text(row, "standing")),
    column("FEDERATED", |row| text(row, "federated")),
    wide("NAMES", |row| text(row, "dnsNames")),
];

const ENDPOINTS: &[Column] = &[
    IN,
    SERVICE,
    column("ADDRESS", |row| text(row, "address")),
    column("PORTS", |row| text(row, "ports")),
    column("PROXY", |row| text(row, "proxy")),
    column("READY", |row| text(row, "ready")),
    wide("INBOUND", |row| text(row, "inbound")),
    wide("ID", |row| text(row, "id")),
];

const STREAMS: &[Column] = &[
    column("AT", |row| text(row, "process")),
    column("DIRECTION", |row| text(row, "direction")),
    column("KIND", |row| text(row, "kind")),
    column("DESTINATION", |row| text(row, "destination")),
    column("CLIENT", |row| text(row, "clientId")),
    column("BY WAY OF", |row| {
        let way = [text(row, "cluster"), text(row, "link"), text(row, "gateway"), text(row, "transport")];
        way.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }),
    column("AGE", |row| {
        let seconds = number(row, "ageMs") / 1000.0 + number(row, "ageSeconds");
        format!("{seconds:.0}s")
    }),
    column("SENT", |row| bytes(number(row, "bytesSent"))),
    column("RECEIVED", |row| bytes(number(row, "bytesReceived"))),
    wide("SESSION", |row| text(row, "session")),
    wide("ENDPOINT", |row| text(row, "endpoint")),
    wide("SERVER", |row| text(row, "serverId")),
];

const LISTENERS: &[Column] = &[
    column("AT", |row| text(row, "process")),
    SERVICE,
    column("PORT", |row| text(row, "port")),
    column("BOUND", |row| text(row, "bound")),
    column("REASON", |row| text(row, "reason")),
];

const IDENTITIES: &[Column] = &[
    IN,
    column("SPIFFE ID", |row| text(row, "spiffeId")),
    column("KIND", |row| text(row, "kind")),
    column("ENDS", |row| at(row, "notAfter").as_i64().map(time).unwrap_or_default()),
    column("ISSUED", |row| at(row, "issuedAt").as_i64().map(time).unwrap_or_default()),
    wide("SERIAL", |row| text(row, "serial")),
];

/// An opaque id, cut to what tells it apart.
pub(crate) fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map(|time| time.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
        .unwrap_or_default()
}

fn bytes(count: f64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let unit = units.into_iter().find(|(size, _)| count >= *size);
    unit.map_or_else(|| format!("{count:.0} B"), |(size, name)| format!("{:.1} {name}", count / size))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cells(resource: Resource, row: &Value) -> Vec<(&'static str, String)> {
        of(resource).iter().map(|column| (column.heading, (column.cell)(row))).collect()
    }

    #[test]
    fn a_link_says_at_a_glance_whether_it_works() {
        let row = json!({
            "inCluster": "west", "name": "east", "transport": "auto", "trustDomain": "east.demo.hawser",
            "status": {
                "conditions": [{"type": "Ready", "status": "True", "reason": "Ok"}],
                "gateways": [
                    {"name": "g0", "alive": true, "transport": "quic", "roundTripUs": 1500},
                    {"name": "g1", "alive": false, "transport": "tcp", "roundTripUs": 10},
                ],
                "offered": 3, "imported": 2, "refused": [{"service": "x", "reason": "y"}],
            },
        });
        let cells: std::collections::BTreeMap<_, _> = cells(Resource::Links, &row).into_iter().collect();
        assert_eq!(cells["READY"], "True");
        assert_eq!(cells["GATEWAYS"], "1/2");
        assert_eq!(cells["ROUND TRIP"], "1.5 ms");
        assert_eq!(cells["TRANSPORT"], "quic (auto)");
        assert_eq!((cells["IMPORTED"].as_str(), cells["REFUSED"].as_str()), ("2", "1"));
    }

    #[test]
    fn no_column_fails_on_an_empty_row() {
        use clap::ValueEnum;
        for resource in Resource::value_variants() {
            assert!(!cells(*resource, &json!({})).is_empty());
        }
    }
}
