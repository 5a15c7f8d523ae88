//! Starts the peers' chains from the configurations in `bench/peers`, with certificates made for the run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};

use crate::chain::{Chain, Entries, Origin, Roles};
use crate::process::{PROXY_CORE, Running, free_address, wait_for, with_children};

/// One CA and one P-256 leaf for both ends: `ca.crt`, `leaf.crt`, `leaf.key`, `leaf.pem` (both together).
pub(crate) fn make_certificates(dir: &Path) -> Result<()> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    // Names of their own: with rcgen's default, subject equals issuer and OpenSSL takes the leaf for self-signed.
    ca.distinguished_name.push(rcgen::DnType::CommonName, "bench CA");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_certificate = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate()?;
    let mut leaf = CertificateParams::new(vec!["bench.local".to_owned()])?;
    leaf.distinguished_name.push(rcgen::DnType::CommonName, "bench leaf");
    leaf.use_authority_key_identifier_extension = true;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = leaf.signed_by(&key, &issuer)?;
    std::fs::write(dir.join("ca.crt"), ca_certificate.pem())?;
    std::fs::write(dir.join("leaf.crt"), certificate.pem())?;
    std::fs::write(dir.join("leaf.key"), key.serialize_pem())?;
    std::fs::write(dir.join("leaf.pem"), certificate.pem() + &key.serialize_pem())?;
    Ok(())
}

/// A peer's three configurations, and how its program takes one.
struct Peer {
    name: &'static str,
    program: String,
    /// Role and template, from the server's end to the client's: each needs the next one's ports.
    templates: [(&'static str, &'static str); 3],
    arguments: fn(PathBuf, usize) -> Vec<String>,
}

/// Envoy, terminating and originating at the gateway, HTTP filters at both ends.
pub(crate) fn envoy(binary: &Path, origin: &Origin) -> Result<Chain> {
    let peer = Peer {
        name: "envoy",
        program: binary.display().to_string(),
        templates: [
            ("inbound", include_str!("../peers/envoy/inbound.yaml")),
            ("gateway", include_str!("../peers/envoy/gateway.yaml")),
            ("egress", include_str!("../peers/envoy/egress.yaml")),
        ],
        arguments: |config, index| {
            let config = config.display().to_string();
            ["-c", &config, "--concurrency", "1", "-l", "error", "--base-id", &format!("{}", 70 + index)]
                .map(str::to_owned)
                .to_vec()
        },
    };
    start(&peer, origin)
}

/// HAProxy, the same roles.
pub(crate) fn haproxy(origin: &Origin) -> Result<Chain> {
    let peer = Peer {
        name: "haproxy",
        program: "haproxy".to_owned(),
        templates: [
            ("inbound", include_str!("../peers/haproxy/inbound.cfg")),
            ("gateway", include_str!("../peers/haproxy/gateway.cfg")),
            ("egress", include_str!("../peers/haproxy/egress.cfg")),
        ],
        arguments: |config, _| vec!["-f".into(), config.display().to_string(), "-db".into()],
    };
    start(&peer, origin)
}

/// nginx, the same roles.
pub(crate) fn nginx(origin: &Origin) -> Result<Chain> {
    let peer = Peer {
        name: "nginx",
        program: "nginx".to_owned(),
        templates: [
            ("inbound", include_str!("../peers/nginx/inbound.conf")),
            ("gateway", include_str!("../peers/nginx/gateway.conf")),
            ("egress", include_str!("../peers/nginx/egress.conf")),
        ],
        arguments: |config, _| vec!["-c".into(), config.display().to_string()],
    };
    start(&peer, origin)
}

const KINDS: [&str; 3] = ["TCP", "HTTP1", "HTTP2"];

fn start(peer: &Peer, origin: &Origin) -> Result<Chain> {
    let dir = origin.dir.path();
    let mut out = [origin.tcp, origin.http1, origin.http2];
    let mut running = Vec::new();
    let mut pids = BTreeMap::new();
    for (index, (role, template)) in peer.templates.into_iter().enumerate() {
        let inward = [free_address("127.0.0.1")?, free_address("127.0.0.1")?, free_address("127.0.0.1")?];
        let config = dir.join(format!("{}-{role}", peer.name)).with_extension(if peer.name == "envoy" {
            "yaml"
        } else {
            "conf"
        });
        std::fs::write(&config, render(template, dir, &format!("{}-{role}", peer.name), inward, out))?;
        let process = Running::start(PROXY_CORE, &peer.program, &(peer.arguments)(config, index), false)?;
        for address in inward {
            wait_for(address, &format!("{} {role}", peer.name))?;
        }
        pids.insert(role, with_children(process.pid()));
        running.push(process);
        out = inward;
    }
    let mut take = |role: &str| pids.remove(role).context("a role is missing");
    let roles = Roles { egress: take("egress")?, gateway: take("gateway")?, inbound: take("inbound")? };
    let [tcp, http1, http2] = out;
    Ok(Chain::new(peer.name, Entries { tcp, dedicated: tcp, http1, http2 }, roles, running))
}

fn render(template: &str, dir: &Path, role: &str, inward: [SocketAddr; 3], out: [SocketAddr; 3]) -> String {
    let mut text = template.replace("@DIR@", &dir.display().to_string()).replace("@ROLE@", role);
    for (kind, (inward, out)) in KINDS.into_iter().zip(inward.into_iter().zip(out)) {
        text = text
            .replace(&format!("@{kind}_IN@"), &inward.port().to_string())
            .replace(&format!("@{kind}_OUT@"), &out.port().to_string());
    }
    text
}
