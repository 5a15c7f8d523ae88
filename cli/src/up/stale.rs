//! What an earlier run left behind: processes that still live are ended if they are surely ours, and their run files go.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, test_kill_process};

use super::child;
use crate::print;
use crate::state::ClusterState;

/// How long a leftover may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Ends leftovers of one cluster. The caller holds the cluster's lock, so no living `hawser up` owns them.
pub(crate) async fn clean(cluster: &ClusterState) {
    for entry in std::fs::read_dir(cluster.run_directory()).into_iter().flatten().flatten() {
        if let Some(pid) = leftover(&entry.path(), &cluster.config_directory()) {
            print::note(format!("ending process {pid}, left by an earlier run ({})", entry.path().display()));
            end(pid).await;
        }
        let _ = std::fs::remove_file(entry.path());
    }
    for socket in [cluster.issuer_socket(), cluster.discovery_socket()] {
        let _ = std::fs::remove_file(socket);
    }
}

/// The process that a run file names, if it lives and its command line names a configuration of ours: process ids are
/// used again, and a stranger must not be killed.
fn leftover(run_file: &Path, configs: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(run_file).ok()?;
    let run: serde_json::Value = serde_json::from_str(&text).ok()?;
    let pid = u32::try_from(run.get("pid")?.as_u64()?).ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let ours =
        command.split(|byte| *byte == 0).any(|word| Path::new(&*String::from_utf8_lossy(word)).starts_with(configs));
    (ours && pid != std::process::id()).then_some(pid)
}

async fn end(pid: u32) {
    child::signal(pid, Signal::TERM);
    let gone = async {
        while lives(pid) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, gone).await.is_err() {
        child::signal(pid, Signal::KILL);
    }
}

fn lives(pid: u32) -> bool {
    i32::try_from(pid).ok().and_then(Pid::from_raw).is_some_and(|pid| test_kill_process(pid).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let run_file = directory.path().join("gateway.json");
        // A living process whose command line does not name our configuration: another's, by a reused id.
        let mut stranger = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        std::fs::write(&run_file, format!("{{\"pid\": {}}}", stranger.id())).unwrap();
        assert_eq!(leftover(&run_file, directory.path()), None);
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[tokio::test]
    async fn a_leftover_of_ours_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let configs = directory.path().join("config");
        let run_file = directory.path().join("gateway.json");
        let script = "sleep 60";
        let mut child =
            std::process::Command::new("sh").args(["-c", script]).arg(configs.join("gateway.yaml")).spawn().unwrap();
        std::fs::write(&run_file, format!("{{\"pid\": {}}}", child.id())).unwrap();
        let found = loop {
            // Until the shell has been started, the command line is still this test's own.
            if let Some(pid) = leftover(&run_file, &configs) {
                break pid;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let waiting = tokio::task::spawn_blocking(move || child.wait().unwrap());
        end(found).await;
        assert!(!waiting.await.unwrap().success());
    }
}
