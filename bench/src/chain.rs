//! A chain: where it begins, and which processes are its egress, gateway and inbound proxies.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Result;

use crate::process::{LOAD_CORE, Running, free_address, wait_for};

/// Programs that are not on PATH.
pub(crate) struct Binaries {
    /// The hawser binary.
    pub(crate) hawser: PathBuf,
    /// Envoy, if there is one.
    pub(crate) envoy: Option<PathBuf>,
}

/// What every chain ends at: our own TCP server, and nginx for HTTP.
pub(crate) struct Origin {
    /// Echoes and swallows uploads.
    pub(crate) tcp: SocketAddr,
    /// HTTP/1.1.
    pub(crate) http1: SocketAddr,
    /// HTTP/2 without TLS.
    pub(crate) http2: SocketAddr,
    /// Certificates and rendered configurations.
    pub(crate) dir: tempfile::TempDir,
    _running: Vec<Running>,
}

/// One way from client to server.
pub(crate) struct Chain {
    /// The column's name in results.json.
    pub(crate) name: &'static str,
    /// Where bytes enter.
    pub(crate) tcp: SocketAddr,
    /// Where bytes enter that shall have a TLS session of their own.
    pub(crate) dedicated: SocketAddr,
    /// Where HTTP/1.1 enters.
    pub(crate) http1: SocketAddr,
    /// Where HTTP/2 enters.
    pub(crate) http2: SocketAddr,
    /// The client's proxy.
    pub(crate) egress: Vec<u32>,
    /// The gateway.
    pub(crate) gateway: Vec<u32>,
    /// The server's proxy.
    pub(crate) inbound: Vec<u32>,
    _running: Vec<Running>,
}

impl Chain {
    /// No proxies at all.
    pub(crate) fn raw(origin: &Origin) -> Self {
        let none = Vec::new;
        Self {
            name: "raw",
            tcp: origin.tcp,
            dedicated: origin.tcp,
            http1: origin.http1,
            http2: origin.http2,
            egress: none(),
            gateway: none(),
            inbound: none(),
            _running: Vec::new(),
        }
    }

    /// A chain with the processes that make it.
    pub(crate) fn new(name: &'static str, entries: Entries, roles: Roles, running: Vec<Running>) -> Self {
        let Entries { tcp, dedicated, http1, http2 } = entries;
        let Roles { egress, gateway, inbound } = roles;
        Self { name, tcp, dedicated, http1, http2, egress, gateway, inbound, _running: running }
    }
}

/// Where a chain begins.
pub(crate) struct Entries {
    pub(crate) tcp: SocketAddr,
    pub(crate) dedicated: SocketAddr,
    pub(crate) http1: SocketAddr,
    pub(crate) http2: SocketAddr,
}

/// Process ids by role.
pub(crate) struct Roles {
    pub(crate) egress: Vec<u32>,
    pub(crate) gateway: Vec<u32>,
    pub(crate) inbound: Vec<u32>,
}

impl Origin {
    /// Starts the servers on the load's core and makes the peers' certificates.
    pub(crate) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hawser-bench").tempdir()?;
        crate::peers::make_certificates(dir.path())?;
        let (tcp, http1, http2) = (free_address("127.0.0.1")?, free_address("127.0.0.1")?, free_address("127.0.0.1")?);
        let body = "x".repeat(1024);
        let config = include_str!("../peers/origin/nginx.conf")
            .replace("@DIR@", &dir.path().display().to_string())
            .replace("@ROLE@", "origin")
            .replace("@HTTP1_IN@", &http1.port().to_string())
            .replace("@HTTP2_IN@", &http2.port().to_string())
            .replace("@BODY@", &body);
        let path = dir.path().join("origin.conf");
        std::fs::write(&path, config)?;
        let own = std::env::current_exe()?.display().to_string();
        let running = vec![
            Running::start(LOAD_CORE, &own, &["serve".into(), "--listen".into(), tcp.to_string()], false)?,
            Running::start(LOAD_CORE, "nginx", &["-c".into(), path.display().to_string()], false)?,
        ];
        for (address, what) in [(tcp, "the TCP server"), (http1, "nginx"), (http2, "nginx")] {
            wait_for(address, what)?;
        }
        Ok(Self { tcp, http1, http2, dir, _running: running })
    }
}
