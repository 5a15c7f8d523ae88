//! `hawser trust audit`: reads a cluster's audit log where it lies, whether its trust anchor runs or not.

use anyhow::{Context, Result, bail};
use hawser_trust_anchor::audit::{self, Line};

use super::client::Which;
use crate::print;

/// Show or check the record of everything that was issued, refused, replaced and revoked.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no line was changed, removed or cut off.
    Verify {
        #[command(flatten)]
        which: Which,
    },
    /// Print the lines, JSON.
    Show {
        #[command(flatten)]
        which: Which,
        /// Only events of this kind: issue, denial, rotation, bundle, revoke, ….
        #[arg(long, value_name = "EVENT")]
        event: Option<String>,
        /// Only the last so many.
        #[arg(long, value_name = "COUNT", default_value_t = 1000)]
        last: usize,
    },
}

pub(crate) fn run(command: &AuditCommand) -> Result<()> {
    match command {
        AuditCommand::Verify { which } => verify(which),
        AuditCommand::Show { which, event, last } => show(which, event.as_deref(), *last),
    }
}

fn verify(which: &Which) -> Result<()> {
    let state = which.state()?;
    let mut broken = 0;
    for anchor in which.clusters()? {
        let store = state.cluster(&anchor.name)?.trust_anchor();
        let reading = audit::read(&store, |_| ()).with_context(|| format!("cluster {}", anchor.name))?;
        match reading.broken {
            None => print::out(format!("{}: {} entries, whole; last {}", anchor.name, reading.entries, reading.last)),
            Some(why) => {
                print::out(format!("{}: broken: {why}", anchor.name));
                broken += 1;
            }
        }
    }
    if broken > 0 {
        bail!("an audit log is not as it was written\nhint: keep a copy of the store, and ask who could write to it");
    }
    Ok(())
}

fn show(which: &Which, event: Option<&str>, last: usize) -> Result<()> {
    let state = which.state()?;
    for anchor in which.clusters()? {
        let store = state.cluster(&anchor.name)?.trust_anchor();
        let mut lines = std::collections::VecDeque::new();
        let take = |line: &Line| {
            if event.is_none_or(|event| line.entry.event == event) {
                lines.push_back(line.clone());
                if lines.len() > last {
                    lines.pop_front();
                }
            }
        };
        audit::read(&store, take).with_context(|| format!("cluster {}", anchor.name))?;
        for line in lines {
            print::out(serde_json::to_string(&line)?);
        }
    }
    Ok(())
}
