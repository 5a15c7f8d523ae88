//! Ports as a peer tells them, checked.

use std::collections::BTreeSet;

use hawser_api::ServiceName;
use hawser_api::proto::catalog;

use super::limits::PORTS_MAX;
use crate::world::{OfferedPort, Protocol};

/// All of them in the peer's order, or the rule that one breaks. A protocol that is none of Kubernetes' is passed over:
/// a newer peer may know more.
pub fn read(told: &[catalog::Port]) -> Result<Vec<OfferedPort>, String> {
    if told.len() > PORTS_MAX {
        return Err(format!("it has more than {PORTS_MAX} ports"));
    }
    let (mut ports, mut names, mut numbers) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for port in told {
        let Some(protocol) = Protocol::parse(&port.protocol) else { continue };
        let number = u16::try_from(port.port).ok().filter(|number| *number > 0);
        let number = number.ok_or_else(|| format!("its port {} is not 1 to 65535", port.port))?;
        if !port.name.is_empty() {
            port.name
                .parse::<ServiceName>()
                .map_err(|_| format!("the name of its port {number} is not a DNS label"))?;
            if !names.insert(port.name.as_str()) {
                return Err(format!("two of its ports are called {}", port.name));
            }
        }
        let app = &port.app_protocol;
        if app.len() > 253 || !app.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b)) {
            return Err(format!("the appProtocol of its port {number} is not a plain word"));
        }
        if !numbers.insert((protocol, number)) {
            return Err(format!("it has port {number} twice"));
        }
        ports.push(OfferedPort { name: port.name.clone(), number, protocol, app_protocol: app.clone() });
    }
    Ok(ports)
}

/// As it goes over the wire.
pub fn write(port: &OfferedPort) -> catalog::Port {
    catalog::Port {
        name: port.name.clone(),
        port: u32::from(port.number),
        protocol: port.protocol.as_str().to_owned(),
        app_protocol: port.app_protocol.clone(),
    }
}
