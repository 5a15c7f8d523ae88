//! `hawser trust` as an operator types it, against a fabric that runs.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::process::Command;

use crate::binary::hawser;
use crate::fabric::Fabric;
use crate::wait::{eventually, within};

/// For one command. A rotation that waits has its own limit.
const COMMAND: Duration = Duration::from_secs(200);
/// For a rotation whose participants are all there: each step waits for reports that come every few seconds at most.
const ROTATES: Duration = Duration::from_secs(150);

async fn trust(mut command: Command) -> Result<String> {
    let said = format!("{:?}", command.as_std());
    let output = tokio::time::timeout(COMMAND, command.output()).await;
    let output = output.with_context(|| format!("{said} took longer than {COMMAND:?}"))??;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{said}: {err}{out}");
    }
    Ok(out.into_owned())
}

fn refused(outcome: Result<String>) -> Result<String> {
    match outcome {
        Ok(said) => bail!("it was not refused: {said}"),
        Err(error) => Ok(format!("{error:#}")),
    }
}

impl Fabric {
    /// Runs `hawser trust …` and returns what it printed, or the error that it printed.
    pub async fn trust(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(hawser()?);
        command.arg("trust").args(arguments).arg("--state").arg(self.state()).kill_on_drop(true);
        trust(command).await
    }

    /// The same for one cluster alone.
    pub async fn trust_of(&self, cluster: &str, arguments: &[&str]) -> Result<String> {
        trust(self.command(cluster, &[&["trust"], arguments].concat())?).await
    }

    /// `hawser …` for one cluster, by that cluster's clock.
    fn command(&self, cluster: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(hawser()?);
        command.args(arguments).args(["--cluster", cluster, "--state"]).arg(self.state_of(cluster)).kill_on_drop(true);
        self.by_clock(cluster, &mut command)?;
        Ok(command)
    }

    /// The same for a command that must fail; its error.
    pub async fn trust_refuses(&self, arguments: &[&str]) -> Result<String> {
        refused(self.trust(arguments).await)
    }

    /// The same for one cluster alone.
    pub async fn trust_of_refuses(&self, cluster: &str, arguments: &[&str]) -> Result<String> {
        refused(self.trust_of(cluster, arguments).await)
    }

    /// What `hawser trust status -o json` says of one cluster.
    pub async fn trust_status(&self, cluster: &str) -> Result<Value> {
        let said = self.trust_of(cluster, &["status", "-o", "json"]).await?;
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

    /// Waits until a cluster's rotation is in this state.
    pub async fn rotation_reaches(&self, cluster: &str, state: &str) -> Result<()> {
        let what = format!("{cluster} to be {state}");
        let waited = within(ROTATES, &what, async || {
            let status = self.trust_status(cluster).await?;
            let now = self.rotation_state(cluster).await?;
            // One that is over is forgotten after a while.
            let there = now == state || (state == "retired" && now == "idle");
            ensure!(there, "{:#}", status.pointer("/rotation").cloned().unwrap_or_default());
            Ok(())
        });
        waited.await.map(|_| ())
    }

    /// A cluster's bundle as it is shown for another to accept by hand: the document, and the pin beside it.
    pub async fn shown_bundle(&self, cluster: &str) -> Result<(String, String)> {
        let shown = self.command(cluster, &["trust", "bundle", "show"])?.output().await?;
        let said = String::from_utf8(shown.stderr)?;
        let pin = said.trim().rsplit("pin ").next().filter(|pin| pin.len() == 64);
        Ok((String::from_utf8(shown.stdout)?, pin.with_context(|| format!("no pin: {said}"))?.to_owned()))
    }

    /// What `hawser check` says of one cluster.
    pub async fn checked(&self, cluster: &str) -> Result<String> {
        Ok(String::from_utf8(self.command(cluster, &["check"])?.output().await?.stdout)?)
    }

    /// The serial number that a daemon presents now.
    pub async fn serial(&self, cluster: &str, kind: &str, name: &str) -> Result<String> {
        let directory = match kind {
            "gateway" => format!("gateways/{name}"),
            "proxy" => format!("proxies/{name}"),
            _ => kind.to_owned(),
        };
        let svid = self.state_of(cluster).join(cluster).join(directory).join("identity/svid.pem");
        let output = Command::new("openssl").args(["x509", "-noout", "-serial", "-in"]).arg(&svid).output().await?;
        ensure!(output.status.success(), "openssl cannot read {}", svid.display());
        let text = String::from_utf8(output.stdout)?;
        Ok(text.trim().trim_start_matches("serial=").to_lowercase())
    }
}
