//! The `hawser` program under test.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// `HAWSER_BIN` if set; else the one beside the test program, built first so that it is never older than the sources.
pub fn hawser() -> Result<PathBuf> {
    static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}"))).clone().map_err(|error| anyhow!(error))
}

fn find() -> Result<PathBuf> {
    if let Some(path) = env::var_os("HAWSER_BIN") {
        let path = PathBuf::from(path);
        if !path.exists() {
            bail!("HAWSER_BIN names {}, which does not exist\nhint: cargo build -p hawser-cli", path.display());
        }
        return Ok(path);
    }
    // target/<profile>/deps/<test>-<hash>
    let test = env::current_exe()?;
    let profile = test.parent().and_then(Path::parent).context("the test program has no target directory")?;
    let path = profile.join("hawser");
    build(profile).with_context(|| format!("cannot build {}\nhint: cargo build -p hawser-cli", path.display()))?;
    Ok(path)
}

fn build(profile: &Path) -> Result<()> {
    let name = profile.file_name().and_then(|name| name.to_str()).unwrap_or("debug");
    let target = profile.parent().context("no target directory")?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let done = Command::new(cargo)
        .args(["build", "--quiet", "-p", "hawser-cli", "--bin", "hawser", "--profile"])
        .arg(if name == "debug" { "dev" } else { name })
        .arg("--target-dir")
        .arg(target)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .context("cannot run cargo")?;
    if !done.success() {
        bail!("cargo build failed");
    }
    Ok(())
}
