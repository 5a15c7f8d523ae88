//! CoreDNS beside an API server: the names of Services, and of ServiceImports (`multicluster`).

use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::ControlPlane;
use super::part::Part;
use crate::wait::within;

const READY: Duration = Duration::from_secs(60);

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct CoreDns {
    address: SocketAddr,
    part: Part,
}

impl CoreDns {
    /// Serves `cluster.local` and `clusterset.local` of this control plane. The CustomResourceDefinition of
    /// ServiceImports must be there: CoreDNS waits for it in vain otherwise.
    pub async fn start(plane: &ControlPlane) -> Result<Self> {
        let address = plane.address(3, 53);
        let corefile = plane.dir().join("Corefile");
        let kubeconfig = plane.kubeconfig().display();
        fs::write(
            &corefile,
            format!(
                ".:{} {{\n  bind {}\n  errors\n  kubernetes cluster.local clusterset.local {{\n    \
                 kubeconfig {kubeconfig}\n    multicluster clusterset.local\n    ttl 0\n  }}\n}}\n",
                address.port(),
                address.ip(),
            ),
        )?;
        let part = Part::new("coredns", plane.dir(), &[format!("-conf={}", corefile.display())])?;
        part.start()?;
        let dns = Self { address, part };
        within(READY, "CoreDNS to answer", async || {
            dns.part.pid()?;
            let answer = dns.ask("kubernetes.default.svc.cluster.local", "A").await?;
            ensure!(!answer.is_empty(), "it has not seen the API server's Service");
            Ok(())
        })
        .await?;
        Ok(dns)
    }

    /// Where it listens, UDP and TCP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The answers of one type to a name, sorted; empty if there are none.
    pub async fn ask(&self, name: &str, kind: &str) -> Result<Vec<String>> {
        let mut dig = Command::new("dig");
        dig.arg(format!("@{}", self.address.ip())).args(["-p", &self.address.port().to_string()]);
        dig.args(["+short", "+tries=1", "+time=2", name, kind]).stdin(Stdio::null()).kill_on_drop(true);
        let done = dig.output().await.context("cannot run dig\nhint: run e2e/install-tools")?;
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        ensure!(done.status.success(), "dig {name}: {said}");
        let mut answers: Vec<String> = said.lines().map(str::to_owned).collect();
        answers.sort();
        Ok(answers)
    }
}
