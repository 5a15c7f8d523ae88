//! `hawser trust` as an operator types it, against a fabric that runs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::binary::hawser;
use crate::fabric::Fabric;
use crate::wait::eventually;

/// For one command. A rotation that waits has its own limit.
const COMMAND: Duration = Duration::from_secs(200);

impl Fabric {
    /// Runs `hawser trust …` and returns what it printed, or the error that it printed.
    pub async fn trust(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(hawser()?);
        command.arg("trust").args(arguments).arg("--state").arg(self.state()).kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND, command.output()).await;
        let output = output.with_context(|| format!("hawser trust {arguments:?} took longer than {COMMAND:?}"))??;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            bail!("hawser trust {arguments:?}: {err}{out}");
        }
        Ok(out.into_owned())
    }

    /// The same for a command that must fail; its error.
    pub async fn trust_refuses(&self, arguments: &[&str]) -> Result<String> {
        match self.trust(arguments).await {
            Ok(said) => bail!("hawser trust {arguments:?} was not refused: {said}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// What `hawser trust status -o json` says of one cluster.
    pub async fn trust_status(&self, cluster: &str) -> Result<Value> {
        let said = self.trust(&["status", "--cluster", cluster, "-o", "json"]).await?;
        let all: Value = serde_json::from_str(&said).with_context(|| format!("no JSON: {said}"))?;
        let mut rows = all.get("clusters").and_then(Value::as_array).into_iter().flatten();
        rows.find(|row| row.get("cluster").is_some_and(|name| name == cluster))
            .cloned()
            .with_context(|| format!("{cluster} is not in {all}"))
    }

    /// Where a cluster's rotation stands: `idle`, `prepared`, … `retired`.
    pub async fn rotation_state(&self, cluster: &str) -> Result<String> {
        let status = self.trust_status(cluster).await?;
        Ok(status.pointer("/rotation/state").and_then(Value::as_str).unwrap_or("idle").to_owned())
    }

    /// Waits until a cluster's audit log has this event of this subject.
    pub async fn on_record(&self, cluster: &str, event: &str, subject: &str) -> Result<()> {
        eventually(&format!("{event} of {subject} in {cluster}'s audit log"), async || {
            let lines = self.trust(&["audit", "show", "--event", event, "--cluster", cluster]).await?;
            let is = |line: &str| {
                serde_json::from_str::<Value>(line)
                    .is_ok_and(|line| line.get("subject").is_some_and(|of| of == subject))
            };
            ensure!(lines.lines().any(is), "it has only: {lines}");
            Ok(())
        })
        .await
    }

    /// The serial number that a daemon presents now.
    pub async fn serial(&self, cluster: &str, kind: &str, name: &str) -> Result<String> {
        let directory = match kind {
            "gateway" => format!("gateways/{name}"),
            "proxy" => format!("proxies/{name}"),
            _ => kind.to_owned(),
        };
        let svid = self.state().join(cluster).join(directory).join("identity/svid.pem");
        let output = Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(&svid).output().await?;
        ensure!(output.status.success(), "openssl cannot read {}", svid.display());
        let text = String::from_utf8(output.stdout)?;
        Ok(text.trim().trim_start_matches("serial=").to_lowercase())
    }
}
